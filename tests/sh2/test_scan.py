"""A scan against the model's logits in float64, against `score`, and against itself in other pieces."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import sh2
import sh2.reading.scan as module
from sh2.errors import Sh2Error
from sh2.reading.perplexity import sliding_log_probs
from sh2.reading.scan import Signal, scan
from tests.sh2.models import CONFIGS, tiny

BASES = np.random.default_rng(3).choice(list(b"ACGTN"), size=300, p=[0.25, 0.25, 0.24, 0.24, 0.02]).astype(np.uint8)


def joined(blocks: object) -> tuple[int, NDArray[np.float32]]:
    """The first token and all signals; the blocks must join without gaps."""
    parts = list(blocks)  # type: ignore[call-overload]
    for (start, block), (following, _) in pairwise(parts):
        assert start + block.shape[1] == following
    return parts[0][0], np.concatenate([block for _, block in parts], axis=1)


def by_definition(logits_LV: NDArray[np.float64], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """The signals from logits, in plain float64."""
    probs = np.exp(logits_LV - logits_LV.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    bases = probs[:, [65, 67, 71, 84]]
    shares = bases / bases.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log2(shares)).sum(axis=1)
    return np.stack([np.log(probs[np.arange(len(targets)), targets]), entropy, *bases.T])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prepend_eod", [False, True])
def test_signals_are_those_of_the_models_logits(name: str, prepend_eod: bool) -> None:
    model = tiny(name)
    # logits that are far from flat
    with torch.no_grad():
        model.norm.scale.mul_(8)
    first, signals = joined(scan(model, BASES.tobytes(), prepend_eod=prepend_eod))
    tokens = np.concatenate([[0], BASES]) if prepend_eod else BASES
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(tokens[None, :-1].astype(np.int64)))
    assert first == (0 if prepend_eod else 1)
    want = by_definition(logits[0].double().numpy(), tokens[1:])
    np.testing.assert_allclose(signals, want, atol=2e-5)
    assert 0 < want[Signal.ENTROPY].min() < 1.7


@pytest.mark.parametrize("chunk", [1, 7, 128, 8192])
@pytest.mark.parametrize("stretch", [5, 100, 1 << 20])
def test_pieces_leave_no_seams(chunk: int, stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    _, whole = joined(scan(model, BASES))
    monkeypatch.setattr(module, "_STRETCH", stretch)
    seen: list[int] = []
    start, pieces = joined(scan(model, BASES, chunk=chunk, progress=seen.append))
    assert start == 1
    assert sum(seen) == BASES.size - 1
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


@pytest.mark.parametrize("prepend_eod", [False, True])
def test_log_probabilities_are_those_of_score(prepend_eod: bool) -> None:
    model = tiny()
    _, signals = joined(scan(model, BASES, prepend_eod=prepend_eod))
    (score,) = sh2.score(model, [BASES], prepend_eod=prepend_eod, per_token=True)
    assert score.log_probs is not None
    np.testing.assert_allclose(signals[Signal.LOG_PROB], score.log_probs, atol=1e-5)


@pytest.mark.parametrize("length", [2, 9, 10, 11, 12, 15, 16, 100, 300])
@pytest.mark.parametrize(("context", "max_tokens", "chunk"), [(10, 1, 3), (10, 64, 8192), (11, 10_000, 8192)])
@pytest.mark.parametrize("prepend_eod", [False, True])
def test_a_context_reads_the_windows_of_sliding_log_probs(
    length: int, context: int, max_tokens: int, chunk: int, prepend_eod: bool
) -> None:
    model = tiny()
    blocks = scan(model, BASES[:length], context=context, max_tokens=max_tokens, chunk=chunk, prepend_eod=prepend_eod)
    first, signals = joined(blocks)
    want = sliding_log_probs(model, BASES[:length], context=context, prepend_eod=prepend_eod)
    assert first == (0 if prepend_eod else 1)
    np.testing.assert_allclose(signals[Signal.LOG_PROB], want, atol=1e-5)


def test_signals_of_windows_have_half_the_context_and_more() -> None:
    """Every row of a window's block, not the log-probability alone, against a window cut by hand."""
    model, context = tiny(), 20
    first, signals = joined(scan(model, BASES, context=context))
    for target in (5, 20, 21, 30, 31, 155, 299):
        later = -(-max(0, target - context) // (context // 2))
        end = min(context + later * (context // 2), BASES.size - 1)
        window = torch.from_numpy(BASES[None, max(0, end - context) : target].astype(np.int64))
        with torch.no_grad():
            logits, _ = model(window)
        want = by_definition(logits[0, -1:].double().numpy(), BASES[target : target + 1])
        np.testing.assert_allclose(signals[:, target - first], want[:, 0], atol=1e-5)


def test_a_single_token_has_no_prediction_without_a_document_before_it() -> None:
    model = tiny()
    assert list(scan(model, "A")) == []
    (block,) = scan(model, "A", prepend_eod=True)
    assert (block[0], block[1].shape) == (0, (6, 1))


def test_text_and_ids_are_the_same_tokens() -> None:
    model = tiny()
    text = BASES.tobytes().decode()
    _, want = joined(scan(model, text))
    for tokens in (text.encode(), BASES, BASES.astype(np.int64), torch.from_numpy(BASES), BASES.tolist()):
        np.testing.assert_array_equal(joined(scan(model, tokens))[1], want)


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        ("", {}, "the sequence is empty: there is nothing to scan"),
        ("ACGT", {"context": 0}, "context must be at least 1, not 0"),
        ("ACGT", {"chunk": 0}, "chunk must be at least 1, not 0"),
        ("ACGT", {"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ([65, 600], {}, "token ids must lie in 0..511, not 65..600"),
    ],
)
def test_what_cannot_be_scanned_is_refused(tokens: object, settings: dict[str, int], message: str) -> None:
    with pytest.raises(Sh2Error, match=re.escape(message)):
        list(scan(tiny(), tokens, **settings))  # type: ignore[arg-type]
