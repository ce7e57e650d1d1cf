"""The baseline that a language model of DNA has to beat: a static Markov model of fixed order.

Counts the k-mers of the training sequences on both strands, then says what every base of other sequences costs,
learning nothing on the way. Upper and lower case are the same base; whatever is not ACGT breaks the context and is not
counted.

Every true base of a test sequence is scored, so that the figure stands on the same bases as a model's: where fewer than
`order` bases precede (at a start, after an N), the context is what there is, by the table of that lower order.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.sequence import BASE_CODES

MAX_ORDER = 12
_CHUNK = 1 << 20
_NOT_A_BASE = 4


@dataclass(frozen=True, kw_only=True)
class MarkovModel:
    """Conditional probabilities of a base given the `order` bases before it.

    `bits[k]` is float32 [4 ** k, 4]: bits that the base (A, C, G, T) costs after context k-mer (first base most
    significant), for k from 0 to `order`.
    """

    order: int
    bits: tuple[NDArray[np.float32], ...]

    @classmethod
    def fit(cls, sequences: Iterable[NDArray[np.uint8]], order: int, *, pseudo_count: float = 1.0) -> Self:
        """Count the (order + 1)-mers of both strands of uint8 sequences (ASCII), `pseudo_count` added to each count.

        Raises DataError for an order outside 0..12 or a pseudo-count that is not positive.
        """
        if not 0 <= order <= MAX_ORDER:
            raise DataError(f"the order of a Markov model must be 0 to {MAX_ORDER}, got {order}")
        if not pseudo_count > 0:
            raise DataError(f"the pseudo-count of a Markov model must be positive, got {pseudo_count}")
        size = 4 ** (order + 1)
        counts = np.zeros(size, dtype=np.int64 if size <= _CHUNK else np.uint32)
        for codes, _ in _pieces(sequences, order):
            ends = np.flatnonzero(_context_lengths(codes, order) == order)
            kmers = _kmers(codes, ends, order + 1)
            if size <= _CHUNK:
                counts += np.bincount(kmers, minlength=size)
            else:
                np.add.at(counts, kmers, 1)
        both = _both_strands(counts, order + 1)
        return cls(order=order, bits=tuple(_bits(both, k, pseudo_count) for k in range(order + 1)))

    def bits_per_base(self, sequences: Iterable[NDArray[np.uint8]]) -> float:
        """Mean cost in bits of the true bases of uint8 sequences (one strand, as given); nan when there are none."""
        total, bases = 0.0, 0
        for codes, carried in _pieces(sequences, self.order):
            lengths = _context_lengths(codes, self.order)
            lengths[:carried] = -1
            for k in range(self.order + 1):
                ends = np.flatnonzero(lengths == k)
                if ends.size:
                    total += float(self.bits[k].ravel()[_kmers(codes, ends, k + 1)].sum(dtype=np.float64))
                    bases += ends.size
        return total / bases if bases else math.nan


def markov_bits_per_base(
    train: Iterable[NDArray[np.uint8]], test: Iterable[NDArray[np.uint8]], order: int, *, pseudo_count: float = 1.0
) -> float:
    """Bits per base of `test` under the static order-`order` model of `train` (both strands counted)."""
    return MarkovModel.fit(train, order, pseudo_count=pseudo_count).bits_per_base(test)


def _pieces(sequences: Iterable[NDArray[np.uint8]], order: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Base codes of sequences in pieces of bounded size, and how many of them the piece before had already."""
    for sequence in sequences:
        for start in range(0, len(sequence), _CHUNK):
            carried = min(order, start)
            yield BASE_CODES[sequence[start - carried : start + _CHUNK]], carried


def _context_lengths(codes: NDArray[np.uint8], order: int) -> NDArray[np.int32]:
    """For every position the number of true bases right before it, at most `order`; -1 where there is no base."""
    positions = np.arange(len(codes), dtype=np.int32)
    breaks = np.where(codes == _NOT_A_BASE, positions, np.int32(-1))
    lengths = np.minimum(positions - np.maximum.accumulate(breaks) - 1, order)
    return np.asarray(lengths, dtype=np.int32)


def _kmers(codes: NDArray[np.uint8], ends: NDArray[np.intp], k: int) -> NDArray[np.int32]:
    """Numbers of the k-mers whose last base is at `ends`, the first base most significant."""
    if k > len(codes):
        return np.zeros(0, dtype=np.int32)
    numbers = np.zeros(len(codes) - k + 1, dtype=np.int32)
    for first in range(k):
        numbers *= 4
        numbers += codes[first : first + len(numbers)]
    return numbers[ends - (k - 1)]


def _both_strands(counts: NDArray[np.integer], k: int) -> NDArray[np.integer]:
    """Counts of every k-mer plus those of its reverse complement: the axes in reverse order, each from T to A."""
    cube = counts.reshape((4,) * k)
    return (cube + cube.transpose()[(slice(None, None, -1),) * k]).reshape(-1, 4)


def _bits(counts: NDArray[np.integer], k: int, pseudo_count: float) -> NDArray[np.float32]:
    """Costs after contexts of k bases: the counts summed over what lies further left."""
    table = counts.reshape(-1, 4**k, 4).sum(axis=0).astype(np.float64)
    table += pseudo_count
    table /= table.sum(axis=1, keepdims=True)
    return np.asarray(-np.log2(table, out=table), dtype=np.float32)
