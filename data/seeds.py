"""Where a text is like other sequences: stretches held against each other base for base, begun by spaced seeds.

A spaced seed leaves every third base free, because two genomes differ most at the third positions of codons
(PatternHunter: Ma, Tromp, Li 2002). The text is indexed and the sequences stream past, for they are longer as a
rule. What is found at a position comes from what stands up to there alone, so that a text can be predicted by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
PackedBases = NDArray[np.uint64]

WORD = 32  # bases in 64 bits
LOWER_BITS = np.uint64(0x5555555555555555)  # of the two that each base has

_SEED = "11011011011011011"  # the last one is the base right before the first that is predicted
_SIMILAR = 26  # of the 32 bases up to a seed's end, so many are the same, or it begins no run
_REACH = 384  # bases of a run after its last seed
_MOST = 64  # runs that one position of the text may begin
_FREQUENT = 256  # of one seed in the text, the first so many are looked up
_PIECE = 1 << 20

_ONE, _TWO = np.uint64(1), np.uint64(2)
_SEED_MASK = np.uint64(sum(3 << 2 * back for back, use in enumerate(reversed(_SEED)) if use == "1"))
_SCATTER = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 over the golden ratio (Knuth's multiplicative hashing)


class Words:
    """Bases in 2 bits each; gives the 32 that end anywhere, the last one lowest."""

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        before, rest = 2 * WORD, -len(codes) % WORD + WORD
        rows = np.pad(codes, (before, rest)).reshape(-1, WORD)
        self.length = len(codes)
        self._packed = np.zeros(len(rows), dtype=np.uint64)
        for column in range(WORD):
            self._packed = self._packed << _TWO | rows[:, column]

    def ending(self, ends: Ints) -> PackedBases:
        """The words whose last bases are at `ends`, -33 at least; A stands before the beginning."""
        places = ends + (2 * WORD + 1)
        upper = places >> 5
        shift = (places & 31).astype(np.uint64) << _ONE
        # in two steps, for a shift by 64 is none
        return self._packed[upper - 1] << shift | self._packed[upper] >> _TWO >> (np.uint64(62) - shift)


def same_bases(a: PackedBases, b: PackedBases) -> PackedBases:
    """The lower bit of every base that two words share."""
    differs = a ^ b
    return ~(differs | differs >> _ONE) & LOWER_BITS


@dataclass(frozen=True, slots=True)
class Runs:
    """Stretches [start, end) of the text with a sequence of the memory beside each, `shift` further on."""

    start: Ints
    end: Ints
    shift: Ints

    @classmethod
    def of(cls, seeds: Ints, shifts: Ints) -> Self:
        """Those that seeds begin, at whose last bases the text is at `seeds`: one while another seed comes in time."""
        order = np.lexsort((seeds, shifts))
        seeds, shifts = seeds[order], shifts[order]
        new = np.ones(len(seeds), dtype=np.bool_)
        new[1:] = (shifts[1:] != shifts[:-1]) | (seeds[1:] > seeds[:-1] + _REACH)
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(seeds))[: len(first)] - 1
        return cls(seeds[first] + 1, seeds[last] + 1 + _REACH, shifts[first])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of these, in their order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "end", "shift")))

    def __getitem__(self, which: slice | Ints | NDArray[np.bool_]) -> "Runs":
        return Runs(self.start[which], self.end[which], self.shift[which])


def find_runs(codes: NDArray[np.uint8], text: Words, words: Words, known: int | None) -> Runs:
    """Index the text by its seeds and look up those of the memory.

    The memory's first `known` bases precede the text, and the text is the rest; None if the text is not in it. That way
    round, because a text is short and a memory long. A run begins after a seed, knowing nothing further on.
    """
    breaks = np.cumsum(codes > 3)
    ends = np.flatnonzero(breaks[WORD - 1 :] == np.concatenate([[0], breaks])[: max(0, len(codes) - WORD + 1)])
    ends += WORD - 1
    bits = min(24, len(codes).bit_length() + 3)  # 24 are the 12 bases of a seed
    slots = _slots(text.ending(ends), bits)
    ends = ends[np.argsort(slots, kind="stable")]
    firsts = np.zeros((1 << bits) + 1, dtype=np.int32)
    np.cumsum(np.bincount(slots, minlength=1 << bits), out=firsts[1:])
    begun = np.zeros(len(codes), dtype=np.int64)
    runs = [Runs.of(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))]
    for piece in range(0, words.length if len(ends) else 0, _PIECE):
        places = np.arange(piece, min(piece + _PIECE, words.length))
        here = words.ending(places)
        slots = _slots(here, bits)
        begin = firsts[slots]
        counts = np.minimum(firsts[slots + 1] - begin, _FREQUENT)
        pairs, number = spread(counts)
        position, place = ends[begin[pairs] + number], places[pairs]
        good = np.bitwise_count(same_bases(text.ending(position), here[pairs])) >= _SIMILAR
        good &= begun[position] < _MOST
        if known is not None:
            # of the text itself, and of its other strand, only what was read before, and all that is looked back over
            source = np.minimum(place, words.length - 1 - place)
            good &= source + 2 * WORD <= known + position
        position, place = position[good], place[good]
        np.add.at(begun, position, 1)
        runs.append(Runs.of(position, place - position))
    found = Runs.joined(runs)
    end = np.minimum(found.end, np.minimum(len(codes), words.length - found.shift))
    return Runs(found.start, end, found.shift)[np.argsort(found.start, kind="stable")]


def _slots(words: PackedBases, bits: int) -> Ints:
    """Where in the index the seeds are that these words end with; two seeds may share a place."""
    return ((words & _SEED_MASK) * _SCATTER >> np.uint64(64 - bits)).astype(np.int64)


def spread(counts: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """For items of so many members each, the item of every member, and its number in that item."""
    items = np.repeat(np.arange(len(counts)), counts)
    return items, np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
