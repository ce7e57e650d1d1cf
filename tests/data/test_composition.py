"""Counts against the same things counted one by one."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.composition import compose, draw_pieces, jensen_shannon, kolmogorov_smirnov

TEXTS = st.lists(st.text("ACGTacgtN", max_size=60), max_size=4)
STOPS = ("TAA", "TAG", "TGA")


def orfs_by_hand(text: str, shortest: int) -> tuple[list[int], Counter[str]]:
    lengths, codons = [], Counter[str]()
    turned = text[::-1].translate(str.maketrans("ACGT", "TGCA"))
    for strand in (text, turned):
        for frame in range(3):
            open_frame: list[str] | None = None
            for place in range(frame, len(strand) - 2, 3):
                codon = strand[place : place + 3]
                if "N" in codon:
                    open_frame = None
                elif codon in STOPS:
                    if open_frame is not None and len(open_frame) >= shortest:
                        lengths.append(len(open_frame))
                        codons.update(open_frame)
                    open_frame = None
                elif open_frame is not None:
                    open_frame.append(codon)
                elif codon == "ATG":
                    open_frame = [codon]
    return lengths, codons


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, shortest=st.integers(1, 4))
def test_everything_is_counted(texts: list[str], shortest: int) -> None:
    made = compose([text.encode() for text in texts], largest_k=3, piece=5, shortest_orf=shortest)
    upper = [text.upper() for text in texts]
    assert made.bases == sum(base in "ACGT" for text in upper for base in text)
    for k in (1, 2, 3):
        words = Counter(text[i : i + k] for text in upper for i in range(len(text) - k + 1))
        want = [
            words["".join("ACGT"[number // 4**place % 4] for place in reversed(range(k)))] for number in range(4**k)
        ]
        np.testing.assert_array_equal(made.kmers[k], want)
    pieces = [text[i : i + 5] for text in upper for i in range(0, len(text) - 4, 5)]
    np.testing.assert_allclose(made.gc, [sum(b in "GC" for b in one) / 5 for one in pieces if "N" not in one])
    lengths, codons = [], Counter[str]()
    for text in upper:
        more, counted = orfs_by_hand(text, shortest)
        lengths += more
        codons += counted
    assert sorted(made.orfs.tolist()) == sorted(lengths)
    names = ["".join("ACGT"[number // 4**place % 4] for place in (2, 1, 0)) for number in range(64)]
    assert made.codons.tolist() == [codons[name] for name in names]


@pytest.mark.parametrize("shortest", [1, 10, 30])
def test_open_frames_of_a_long_sequence(shortest: int) -> None:
    text = "".join(np.random.default_rng(shortest).choice(list("ACGTN"), 6000, p=[0.27, 0.23, 0.23, 0.26, 0.01]))
    made = compose([text.encode()], largest_k=1, piece=100, shortest_orf=shortest)
    lengths, codons = orfs_by_hand(text, shortest)
    assert sorted(made.orfs.tolist()) == sorted(lengths)
    assert len(lengths) > 1
    assert made.codons.sum() == sum(codons.values())


def test_an_open_frame_by_hand() -> None:
    text = b"cc" + b"ATGAAACCCATGGGGTAA" + b"ATG" + b"NNN" + b"TAG"
    made = compose([text], largest_k=1, piece=100, shortest_orf=5)
    assert made.orfs.tolist() == [5]
    assert compose([text], largest_k=1, piece=100, shortest_orf=6).orfs.tolist() == []
    assert len(made.gc) == 0


def test_distances() -> None:
    a, b = np.array([1, 1, 0, 0]), np.array([0, 0, 5, 5])
    assert jensen_shannon(a, 10 * a) == pytest.approx(0)
    assert jensen_shannon(a, b) == pytest.approx(1)
    # p = (1, 0), q = (1/2, 1/2), middle (3/4, 1/4)
    want = (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5 * np.log2(2)) / 2
    assert jensen_shannon(np.array([1, 0]), np.array([3, 3])) == pytest.approx(want)
    assert np.isnan(jensen_shannon(a, 0 * b))
    assert kolmogorov_smirnov(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == pytest.approx(0.5)
    assert kolmogorov_smirnov(np.array([1.0]), np.array([1.0])) == 0
    assert np.isnan(kolmogorov_smirnov(np.array([1.0]), np.array([])))


def test_pieces_are_drawn_from_the_sequences() -> None:
    sequences = [b"A" * 50 + b"C" * 50, b"G" * 10]
    pieces = list(draw_pieces(sequences, [7, 20, 100], seed=1))
    assert pieces == list(draw_pieces(sequences, [7, 20, 100], seed=1))
    assert all(any(piece in text for text in sequences) for piece in pieces)
    assert [len(piece) for piece in pieces[:1]] == [7]
