"""Which stretch of which record trains, validates or tests: decided by the bases themselves, with a stable hash.

A unit is a whole record or a block of one. Its value is blake2b of (seed, hash of the record's upper-cased bases,
number of the block): a number in 0..2^63, and the lowest values are the test split, the next the validation split.
So identical records never straddle splits, and neither the order of files nor other files change where a unit goes
(but see `Cuts.make` for collections so small that a split would be empty, and `region_length`).
Knows hashes, lengths and fractions; knows nothing of files.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

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


class Units(NamedTuple):
    """Units of some records, in order, int64 [U] each: value, index of the record, first and last base in the record.

    `end` is half-open.
    """

    value: npt.NDArray[np.int64]
    record: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


def units_of(hashes: Sequence[bytes], lengths: npt.NDArray[np.int64], seed: int, region: int | None) -> Units:
    """Units of records with these hashes of their content and lengths in bases, int64 [R].

    region: bases of a unit (the last of a record takes the remainder in); None: a record is one unit.
    """
    blocks = np.ones_like(lengths) if region is None else np.maximum(1, lengths // region)
    record = np.repeat(np.arange(len(lengths)), blocks)
    last = np.cumsum(blocks)
    block = np.arange(len(record)) - np.repeat(last - blocks, blocks)
    start = block * (region or 0)
    end = start + (region or 0)
    end[last - 1] = lengths
    return Units(_values(hashes, blocks, seed), record, start, end)


def _values(hashes: Sequence[bytes], blocks: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    key = seed.to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(content + block.to_bytes(8, "little"), digest_size=8, key=key).digest()
        for content, count in zip(hashes, blocks.tolist(), strict=True)
        for block in range(count)
    )
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(1)).astype(np.int64)


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


def runs(units: Units, splits: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Units]:
    """(split [N], units [N]): neighbours in the same record and of the same split joined into one.

    splits: int64 [U], the split of each unit. A joined unit has the value of its first.
    """
    if not len(splits):
        return splits, units
    differs = (units.record[1:] != units.record[:-1]) | (splits[1:] != splits[:-1])
    first = np.concatenate([[True], differs])
    last = np.concatenate([differs, [True]])
    joined = Units(units.value[first], units.record[first], units.start[first], units.end[last])
    return splits[first], joined
