"""Splits: stable, complete, never empty where there is a choice."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.splits import Cuts, LowestValues, SplitBy, region_length, runs, units_of

RANGE = 1 << 63


def content(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def values(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=8), st.one_of(st.none(), st.integers(1, 3000)))
def test_units_tile_every_record(lengths: list[int], region: int | None) -> None:
    hashes = [content(str(index)) for index in range(len(lengths))]
    units = units_of(hashes, values(lengths), 5, region)
    for index, length in enumerate(lengths):
        own = units.record == index
        starts, ends = units.start[own].tolist(), units.end[own].tolist()
        assert len(starts) == (1 if region is None else max(1, length // region))
        assert [0, *ends] == [*starts, length]
        alone = units_of(hashes[index : index + 1], values([length]), 5, region)
        assert np.array_equal(alone.value, units.value[own])
    assert (units.value >= 0).all()


def test_values_are_pinned() -> None:
    key = (7).to_bytes(8, "little")
    digests = [hashlib.blake2b(content("x") + block.to_bytes(8, "little"), digest_size=8, key=key) for block in (0, 1)]
    expected = [int.from_bytes(digest.digest(), "little") >> 1 for digest in digests]
    assert units_of([content("x")], values([2048]), 7, 1024).value.tolist() == expected


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.sampled_from([0, 0.05, 0.5, 0.9]),
       st.sampled_from([0, 0.05, 0.09]))  # fmt: skip
def test_cuts_leave_no_wanted_split_empty(numbers: list[int], valid: float, test: float) -> None:
    units = values([number * (RANGE // 61) for number in numbers])
    lowest = LowestValues()
    lowest.add(units)
    splits = Cuts.make(lowest.values, lowest.complete, valid, test).assign(units)
    wanted = [2] + [1] * (valid > 0) + [0] * (test > 0)
    distinct = len(set(numbers))
    assert set(splits.tolist()) == set(wanted[:distinct])
    for first, second in zip(*np.triu_indices(len(numbers)), strict=True):
        if numbers[first] == numbers[second]:
            assert splits[first] == splits[second]
        elif numbers[first] < numbers[second]:
            assert splits[first] <= splits[second]


def test_cuts_keep_to_the_fractions() -> None:
    units = np.random.default_rng(0).integers(0, RANGE, 200_000)
    lowest = LowestValues()
    for part in np.array_split(units, 7):
        lowest.add(part)
    assert not lowest.complete
    splits = Cuts.make(lowest.values, lowest.complete, 0.05, 0.02).assign(units)
    assert np.bincount(splits, minlength=3) / len(units) == pytest.approx([0.02, 0.05, 0.93], abs=0.003)


def test_lowest_values_are_those_of_the_whole_stream() -> None:
    units = np.random.default_rng(1).integers(0, 1 << 40, 300_000)
    lowest = LowestValues()
    for part in np.array_split(units, 5):
        lowest.add(part)
    assert np.array_equal(lowest.values, np.unique(units)[: 1 << 16])


def test_runs_join_neighbours_of_one_record_and_split() -> None:
    units = units_of([content("a"), content("b")], values([5000, 3500]), 0, 1000)
    kinds, joined = runs(units, values([2, 2, 0, 2, 2, 2, 1, 1]))
    assert kinds.tolist() == [2, 0, 2, 2, 1]
    assert list(zip(joined.record.tolist(), joined.start.tolist(), joined.end.tolist(), strict=True)) == [
        (0, 0, 2000),
        (0, 2000, 3000),
        (0, 3000, 5000),
        (1, 0, 1000),
        (1, 1000, 3500),
    ]


@pytest.mark.parametrize(
    ("bases", "length"), [(10_000_000, 32768), (40 * 32768, 32768), (48_502, 1212), (5386, 134), (10, 1)]
)
def test_region_length(bases: int, length: int) -> None:
    assert region_length(32768, bases) == length


def test_auto_splits_few_records_by_region() -> None:
    assert [SplitBy.AUTO.resolve(99), SplitBy.AUTO.resolve(100)] == [SplitBy.REGION, SplitBy.RECORD]
    assert [SplitBy.RECORD.resolve(1), SplitBy.REGION.resolve(1000)] == [SplitBy.RECORD, SplitBy.REGION]
