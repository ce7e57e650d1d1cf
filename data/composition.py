"""What sequences are made of: k-mers, GC, open reading frames, codons; and how far two such pictures are apart.

Whatever is not A, C, G or T breaks k-mers and reading frames. Case does not count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.sequence import BASE_CODES, reverse_complement

_CODES = BASE_CODES.astype(np.int64)

Counts = NDArray[np.int64]


def _codon(text: str) -> int:
    return int(np.dot([16, 4, 1], _CODES[list(text.encode())]))


_START = _codon("ATG")
_STOPS = [_codon(text) for text in ("TAA", "TAG", "TGA")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """Counts over some sequences.

    bases: A, C, G and T in all. kmers: by k, [4^k] in the order of the alphabet. gc: of each piece of `piece` bases
    that is full, the share of G and C. orfs: lengths in codons of the open reading frames of both strands, from ATG to
    a stop that is not counted. codons: [64] within them.
    """

    bases: int
    kmers: dict[int, Counts]
    gc: NDArray[np.float64]
    orfs: Counts
    codons: Counts


def compose(sequences: Iterable[bytes], *, largest_k: int, piece: int, shortest_orf: int) -> Composition:
    """Count what sequences are made of.

    Args:
        largest_k: k-mers of 1 to so many bases; 4 to that power are counted.
        piece: bases of the pieces whose GC is taken.
        shortest_orf: codons of an open reading frame, at least.
    """
    kmers = {k: np.zeros(4**k, dtype=np.int64) for k in range(1, largest_k + 1)}
    gc, orfs = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    codons = np.zeros(64, dtype=np.int64)
    for text in sequences:
        codes = _CODES[np.frombuffer(text, dtype=np.uint8)]
        for k, counts in kmers.items():
            found = _words(codes, k)
            counts += np.bincount(found[found >= 0], minlength=4**k)
        whole = codes[: len(codes) - len(codes) % piece].reshape(-1, piece)
        full = whole[(whole < 4).all(axis=1)]
        gc.append(((full == 1) | (full == 2)).mean(axis=1))
        for strand in (codes, _CODES[np.frombuffer(reverse_complement(text), dtype=np.uint8)]):
            for frame in range(3):
                lengths = _frame(_words(strand, 3)[frame::3], shortest_orf, codons)
                orfs.append(lengths)
    return Composition(
        bases=int(kmers[1].sum()), kmers=kmers, gc=np.concatenate(gc), orfs=np.concatenate(orfs), codons=codons
    )


def _words(codes: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The number of the k-mer that begins at each base; -1 where one of its letters is no base."""
    if len(codes) < k:
        return np.zeros(0, dtype=np.int64)
    words = np.zeros(len(codes) - k + 1, dtype=np.int64)
    broken = np.zeros(len(words), dtype=bool)
    for place in range(k):
        letters = codes[place : place + len(words)]
        words = words * 4 + letters
        broken |= letters == 4
    words[broken] = -1
    return words


def _frame(words: NDArray[np.int64], shortest: int, codons: Counts) -> Counts:
    """The lengths of the open frames among the codons of one reading frame, whose codons are added up."""
    ends = np.flatnonzero(np.isin(words, _STOPS))
    breaks = np.flatnonzero((words < 0) | np.isin(words, _STOPS))
    starts = np.flatnonzero(words == _START)
    if not len(ends) or not len(starts):
        return np.zeros(0, dtype=np.int64)
    # the first start after what ended the frame before, if it comes before this end
    before = np.searchsorted(breaks, ends) - 1
    begun = np.where(before >= 0, breaks[before], -1)
    places = np.searchsorted(starts, begun, side="right")
    first = np.append(starts, len(words))[places]
    lengths = ends - first
    kept = lengths >= max(1, shortest)
    edges = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(edges, first[kept], 1)
    np.add.at(edges, ends[kept], -1)
    inside = words[edges[:-1].cumsum() > 0]
    codons += np.bincount(inside, minlength=64)
    return lengths[kept]


def jensen_shannon(one: Counts, other: Counts) -> float:
    """The Jensen-Shannon divergence of two sets of counts, in bits: 0 for the same shares, 1 for none in common.

    NaN if one of them is empty.
    """
    if not one.sum() or not other.sum():
        return float("nan")
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    return float(_divergence(p, middle) + _divergence(q, middle)) / 2


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / q[seen])).sum())


def kolmogorov_smirnov(one: NDArray[np.float64] | Counts, other: NDArray[np.float64] | Counts) -> float:
    """The largest distance of two cumulative distributions, 0 to 1; NaN if one of them is empty."""
    if not len(one) or not len(other):
        return float("nan")
    points = np.concatenate([one, other])
    shares = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (one, other))
    first, second = shares
    return float(np.abs(first - second).max())


def draw_pieces(sequences: list[bytes], lengths: Iterable[int], seed: int) -> Iterator[bytes]:
    """Pieces of given lengths from random places of the sequences; of one that is too short for a length, all of it."""
    rng = np.random.default_rng(seed)
    weights = np.array([len(text) for text in sequences], dtype=np.float64)
    for length in lengths:
        text = sequences[int(rng.choice(len(sequences), p=weights / weights.sum()))]
        first = int(rng.integers(0, max(1, len(text) - length + 1)))
        yield text[first : first + length]
