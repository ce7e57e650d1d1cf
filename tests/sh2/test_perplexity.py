"""Sliding windows against windows cut by hand."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from sh2.errors import Sh2Error
from sh2.reading.dynamic import dynamic_log_probs
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


@pytest.mark.parametrize("length", [1, 16, 40])
@pytest.mark.parametrize("reader", [sliding_log_probs, partial(dynamic_log_probs, lr=1e-3)])
def test_of_all_that_is_asked_for_the_token_that_came_is_one(length: int, reader: Callable[..., Any]) -> None:
    ids, asked = IDS[:length], b"TGCAN"
    own = reader(tiny(), ids, context=10, stride=5)
    among = reader(tiny(), ids, context=10, stride=5, among=asked)
    assert among.shape == (length, 5)
    assert among.dtype == np.float32
    np.testing.assert_array_equal(among[np.arange(length), [asked.index(int(token)) for token in ids]], own)
    assert (np.exp(among.astype(np.float64)).sum(axis=1) < 1).all()


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
