"""Which stretch of which record trains, validates or tests: decided by the bases themselves, with a stable hash.

A unit is a whole record or a block of one. Its value is blake2b of (seed, hash of the record's upper-cased bases,
number of the block): a number in 0..2^63, and the lowest values are the test split, the next the validation split.
So identical records never straddle splits, and neither the order of files nor other files change where a unit goes
(but see `Cuts.make` for collections so small that a split would be empty, and `region_length`).
Knows hashes, lengths and fractions; knows nothing of files.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt

from data.store import Split

_RANGE = 1 << 63
_KEPT = 1 << 16
FEW_RECORDS = 100
"""With fewer records, `auto` splits by region: one record more or less would be too large a part."""
FEWEST_REGIONS = 40


class SplitBy(StrEnum):
    """What a unit of a split is; `auto` is region for fewer than 100 records, else record."""

    AUTO = "auto"
    RECORD = "record"
    REGION = "region"

    def resolve(self, records: int) -> "SplitBy":
        """What `auto` comes to for a number of records."""
        if self is not SplitBy.AUTO:
            return self
        return SplitBy.REGION if records < FEW_RECORDS else SplitBy.RECORD


def region_length(wanted: int, bases: int) -> int:
    """Bases of a region: as wanted, or shorter where fewer than 40 would come of it."""
    return max(1, min(wanted, bases // FEWEST_REGIONS))


def blocks_of(length: int, by: SplitBy, region: int) -> int:
    """Units of a record: one, or one a whole region (the last unit takes the remainder in)."""
    return max(1, length // region) if by is SplitBy.REGION else 1


def unit_values(content_hash: bytes, blocks: int, seed: int) -> npt.NDArray[np.int64]:
    """Values of a record's units, int64 [blocks], uniform in 0..2^63."""
    keyed = hashlib.blake2b(content_hash, digest_size=8, key=seed.to_bytes(8, "little"))
    values = np.empty(blocks, dtype=np.int64)
    for block in range(blocks):
        digest = keyed.copy()
        digest.update(block.to_bytes(8, "little"))
        values[block] = int.from_bytes(digest.digest(), "little") >> 1
    return values


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Units of a value below `test` are the test split, of the rest those below `valid` the validation split."""

    test: int
    valid: int

    @classmethod
    def make(cls, lowest: npt.NDArray[np.int64], complete: bool, valid: float, test: float) -> Self:
        """Cuts for the fractions, moved where a wanted split would be empty.

        lowest: distinct values of units, ascending, the lowest of all; complete: whether that is every one.
        A wanted split without a unit gets the lowest value that is left; training always keeps one, then validation
        is served, then testing.
        """
        cut_test, cut_valid = math.floor(test * _RANGE), math.floor((test + valid) * _RANGE)
        ends = [int(np.searchsorted(lowest, cut)) for cut in (cut_test, cut_valid)]
        end_test = max(ends[0], 1 if test > 0 else 0)
        end_valid = max(ends[1], end_test + (1 if valid > 0 else 0))
        if complete and end_valid >= len(lowest):
            end_valid = max(0, len(lowest) - 1)
            end_test = max(0, min(end_test, end_valid - (1 if valid > 0 else 0)))
        return cls(
            test=cut_test if end_test == ends[0] else _just_above(lowest, end_test),
            valid=cut_valid if end_valid == ends[1] else _just_above(lowest, end_valid),
        )

    def assign(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Split of each unit as an index into (TEST, VALID, TRAIN)."""
        return (values >= self.test).astype(np.int64) + (values >= self.valid)


ORDER = (Split.TEST, Split.VALID, Split.TRAIN)
"""What the indices of `Cuts.assign` and `runs` mean."""


def _just_above(lowest: npt.NDArray[np.int64], count: int) -> int:
    """The cut below which the first `count` values lie."""
    return int(lowest[count - 1]) + 1 if 0 < count <= len(lowest) else 0


class LowestValues:
    """The lowest distinct values of a stream of values, at most 65,536 of them."""

    def __init__(self) -> None:
        self.values = np.empty(0, dtype=np.int64)
        self.complete = True

    def add(self, values: npt.NDArray[np.int64]) -> None:
        """Take more values in, int64 [N]."""
        merged = np.unique(np.concatenate([self.values, values]))
        self.complete = self.complete and len(merged) <= _KEPT
        self.values = merged[:_KEPT]


def runs(splits: npt.NDArray[np.int64], length: int, region: int) -> Iterator[tuple[int, int, int]]:
    """(split, start, end) of the maximal runs of one split in a record, in bases.

    splits: int64 [blocks], the split of each unit; block i starts at i * region, the last ends at `length`.
    """
    borders = np.flatnonzero(np.diff(splits)) + 1
    starts = [0, *borders.tolist()]
    for first, after in zip(starts, [*starts[1:], None], strict=True):
        yield int(splits[first]), first * region, length if after is None else after * region
