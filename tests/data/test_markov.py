"""The Markov baseline against a model that counts with a dictionary, base by base."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data import markov
from data.errors import DataError
from data.markov import MarkovModel, markov_bits_per_base

DNA = st.lists(st.text("ACGTacgtNR", max_size=60), max_size=5)


def as_array(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def naive_bits(train: list[str], test: list[str], order: int, pseudo_count: float) -> float:
    """Count k-mers of both strands in a dictionary; score every base after at most `order` true bases."""
    complement = str.maketrans("ACGT", "TGCA")
    kmers: Counter[str] = Counter()
    for sequence in train:
        upper = sequence.upper()
        for i in range(len(upper) - order):
            kmer = upper[i : i + order + 1]
            if set(kmer) <= set("ACGT"):
                kmers[kmer] += 1
                kmers[kmer.translate(complement)[::-1]] += 1
    total, bases = 0.0, 0
    for sequence in test:
        context = ""
        for base in sequence.upper():
            if base not in "ACGT":
                context = ""
                continue
            counts = {
                b: sum(n for kmer, n in kmers.items() if kmer.endswith(context + b)) + pseudo_count for b in "ACGT"
            }
            total -= math.log2(counts[base] / sum(counts.values()))
            bases += 1
            context = (context + base)[len(context) + 1 - order :] if len(context) + 1 > order else context + base
    return total / bases if bases else math.nan


@given(train=DNA, test=DNA, order=st.integers(0, 4), pseudo_count=st.sampled_from([0.1, 1.0, 16.0]))
def test_equals_counting_by_hand(train: list[str], test: list[str], order: int, pseudo_count: float) -> None:
    expected = naive_bits(train, test, order, pseudo_count)
    got = markov_bits_per_base(map(as_array, train), map(as_array, test), order, pseudo_count=pseudo_count)
    assert got == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("order", [0, 1, 3, 7])
def test_pieces_change_nothing(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    sequences = [
        rng.choice(np.frombuffer(b"ACGTN", dtype=np.uint8), size=n, p=[0.3, 0.2, 0.2, 0.25, 0.05]) for n in (997, 31)
    ]
    whole = MarkovModel.fit(sequences, order)
    expected = whole.bits_per_base(sequences)
    monkeypatch.setattr(markov, "_CHUNK", 10)
    pieces = MarkovModel.fit(sequences, order)
    assert all(np.array_equal(a, b) for a, b in zip(whole.bits, pieces.bits, strict=True))
    assert pieces.bits_per_base(sequences) == pytest.approx(expected, rel=1e-9)


def test_both_strands_cost_the_same() -> None:
    model = MarkovModel.fit([as_array("ACGGTTACCATGATTTACGGGGATC" * 20)], 3)
    reverse_model = MarkovModel.fit([as_array("GATCCCCGTAAATCATGGTAACCGT" * 20)], 3)
    assert np.array_equal(model.bits[3], reverse_model.bits[3])


def test_uniform_bases_cost_two_bits() -> None:
    rng = np.random.default_rng(0)
    bases = rng.choice(np.frombuffer(b"ACGT", dtype=np.uint8), size=200_000)
    assert MarkovModel.fit([bases], 2).bits_per_base([bases]) == pytest.approx(2.0, abs=1e-3)


def test_refuses() -> None:
    with pytest.raises(DataError, match="order of a Markov model must be 0 to 12, got 13"):
        MarkovModel.fit([], 13)
    with pytest.raises(DataError, match="pseudo-count of a Markov model must be positive, got 0"):
        MarkovModel.fit([], 1, pseudo_count=0)
