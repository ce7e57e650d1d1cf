"""Scores against logits taken by hand, whatever the batch, the chunk or the form of the tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sh2
from sh2.errors import Sh2Error
from tests.sh2.models import tiny

SEQUENCES = ["ACGT" * 10, "GATTACA", "C", "ACGT" * 10, "TTTTTTTTTTTTTTTTTTTTGA" * 7]


def by_hand(model: sh2.StripedHyena2, tokens: list[int]) -> np.ndarray:
    """log p of every token but the first, in float64 from one pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]))[0][0].double()
    return torch.log_softmax(logits, -1)[
        torch.arange(len(tokens) - 1), torch.tensor(tokens[1:], dtype=torch.long)
    ].numpy()


def test_a_score_is_the_sum_of_the_log_probabilities() -> None:
    model = tiny()
    for text, score in zip(SEQUENCES, sh2.score(model, SEQUENCES, per_token=True), strict=True):
        want = by_hand(model, list(text.encode()))
        assert (score.length, score.num_scored) == (len(text), len(text) - 1)
        assert score.log_likelihood == pytest.approx(want.sum(), rel=1e-6)
        np.testing.assert_allclose(score.log_probs, want, rtol=1e-5, atol=1e-6)
        if score.num_scored:
            assert score.mean_log_likelihood == pytest.approx(want.mean(), rel=1e-6)
            assert score.bits_per_base == pytest.approx(-want.mean() / math.log(2), rel=1e-6)


def test_after_an_eod_the_first_base_is_scored_too() -> None:
    model = tiny()
    (score,) = sh2.score(model, ["GATTACA"], prepend_eod=True)
    assert (score.length, score.num_scored) == (7, 7)
    assert score.log_likelihood == pytest.approx(by_hand(model, [0, *b"GATTACA"]).sum(), rel=1e-6)


@pytest.mark.parametrize("condition", ["A", "GATTACA", "ACGT" * 60])
@pytest.mark.parametrize("eod", [False, True])
@pytest.mark.parametrize("chunk", [5, 8192])
def test_conditioned_scores_are_those_of_the_tail_of_both_together(condition: str, eod: bool, chunk: int) -> None:
    for name in ("striped", "grouped heads, biases, untied", "hyena_se feed-forward"):
        model = tiny(name)
        scores = sh2.score(
            model, SEQUENCES, condition=condition, prepend_eod=eod, per_token=True, chunk=chunk, max_tokens=500
        )
        for text, score in zip(SEQUENCES, scores, strict=True):
            want = by_hand(model, [*[0] * eod, *(condition + text).encode()])[-len(text) :]
            assert (score.length, score.num_scored) == (len(text), len(text))
            assert score.log_likelihood == pytest.approx(want.sum(), rel=1e-5)
            np.testing.assert_allclose(score.log_probs, want, rtol=1e-5, atol=1e-5)


def test_a_single_base_has_nothing_to_score() -> None:
    (score,) = sh2.score(tiny(), ["G"])
    assert (score.num_scored, score.log_likelihood) == (0, 0.0)
    assert math.isnan(score.mean_log_likelihood)
    assert math.isnan(score.bits_per_base)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    chunk=st.sampled_from([1, 2, 3, 7, 31, 8192]),
    max_tokens=st.sampled_from([1, 64, 65_536]),
)
def test_a_score_depends_on_neither_batch_mates_nor_chunks(lengths: list[int], chunk: int, max_tokens: int) -> None:
    model = tiny()
    rng = np.random.default_rng(sum(lengths))
    sequences = [rng.choice(list(b"ACGT"), size=length) for length in lengths]
    together = sh2.score(model, sequences, chunk=chunk, max_tokens=max_tokens)
    for sequence, score in zip(sequences, together, strict=True):
        (alone,) = sh2.score(model, [sequence])
        assert score.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-5, abs=1e-6)


def test_text_bytes_arrays_and_tensors_are_the_same_tokens() -> None:
    model = tiny()
    forms = ["GATTACA", b"GATTACA", list(b"GATTACA"), np.frombuffer(b"GATTACA", np.uint8), torch.tensor([*b"GATTACA"])]
    assert len({score.log_likelihood for score in sh2.score(model, forms)}) == 1


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "sequence 0 is empty: there is nothing to score"),
        ([65, 512], r"token ids must lie in 0..511, not 65..512"),
        ([-1, 65], r"token ids must lie in 0..511, not -1..65"),
        ([1.5, 2.0], r"tokens must be one row of whole numbers, not float64"),
        ([[65], [66]], r"tokens must be one row of whole numbers, not int64 of shape \[2, 1\]"),
    ],
)
def test_what_cannot_be_scored_is_refused(sequence: object, message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        sh2.score(tiny(), [sequence])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("sequences", "settings", "message"),
    [
        ("ACGT", {}, "a list of sequences is wanted, not one str"),
        (b"ACGT", {}, "a list of sequences is wanted, not one bytes"),
        ([[[1], [1, 2]]], {}, "not rows of unequal lengths"),
        (["ACGT"], {"chunk": -1}, "chunk must be at least 1, not -1"),
        (["ACGT"], {"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
    ],
)
def test_what_would_be_scored_wrongly_is_refused(sequences: object, settings: dict[str, int], message: str) -> None:
    with pytest.raises(Sh2Error, match=message):
        sh2.score(tiny(), sequences, **settings)


def test_progress_counts_every_token_run() -> None:
    counts: list[int] = []
    sh2.score(tiny(), ["ACGT" * 10, "G" * 7], chunk=16, progress=counts.append)
    assert sum(counts) == 39 + 6
    assert len(counts) == 3 + 1
