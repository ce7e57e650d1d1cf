"""Sliding windows against windows cut by hand."""

import re

import numpy as np
import pytest

from sh2.errors import Sh2Error
from sh2.reading.perplexity import sliding_log_probs
from sh2.reading.scoring import token_log_probs
from tests.sh2.models import tiny

IDS = np.random.default_rng(0).choice(list(b"ACGT"), size=200)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 14, 15, 16, 100, 200])
@pytest.mark.parametrize(("context", "stride"), [(10, 5), (10, 10), (10, 1), (10, 3), (1, 1), (500, 250)])
@pytest.mark.parametrize("prepend_eod", [True, False])
def test_every_token_is_scored_once_with_its_context(length: int, context: int, stride: int, prepend_eod: bool) -> None:
    model = tiny()
    ids = IDS[:length]
    seen: list[int] = []
    got = sliding_log_probs(
        model, ids, context=context, stride=stride, prepend_eod=prepend_eod, progress=seen.append, max_tokens=64
    )
    tokens = np.concatenate([[0], ids]) if prepend_eod else ids
    assert len(got) == sum(seen) == len(tokens) - 1
    for target in range(1, len(tokens)):
        # windows predict targets 1..context, then stride more each; the last one ends with the sequence
        later = -(-max(0, target - context) // stride)
        end = min(context + later * stride, len(tokens) - 1)
        window = tokens[max(0, end - context) : target + 1].astype(np.int64)
        (want,) = token_log_probs(model, [window])
        assert got[target - 1] == pytest.approx(float(want[-1]), rel=1e-4, abs=1e-5)


def test_half_the_context_is_the_default_stride() -> None:
    model = tiny()
    got, want = sliding_log_probs(model, IDS, context=20), sliding_log_probs(model, IDS, context=20, stride=10)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("tokens", "stride", "message"),
    [
        ("ACGT", 11, "the stride must lie in 1..10, the context, not 11"),
        ("ACGT", 0, "the stride must lie in 1..10, the context, not 0"),
        ("", 5, "the sequence is empty: there is nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_refused(tokens: str, stride: int, message: str) -> None:
    with pytest.raises(Sh2Error, match=re.escape(message)):
        sliding_log_probs(tiny(), tokens, context=10, stride=stride)
