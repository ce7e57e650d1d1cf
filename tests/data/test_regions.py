"""Regions against a caller that looks at every base on its own."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import data.tracks as tracks
from data.errors import DataError
from data.regions import Region, Rule, find_regions, sliding_mean, write_bed

VALUE = st.one_of(st.just(float("nan")), st.integers(-4, 4).map(float))


def slow_regions(values: NDArray[np.float32], rule: Rule) -> list[Region]:
    """Base by base, without a running sum."""
    inside = []
    for place in range(values.size):
        left = place - rule.window // 2
        around = [float(value) for value in values[max(0, left) : max(0, left + rule.window)] if not np.isnan(value)]
        mean = sum(around) / len(around) if around else None
        inside.append(mean is not None and (mean < rule.threshold if rule.below else mean > rule.threshold))
    regions, start = [], None
    for place, here in enumerate([*inside, False]):
        if here and start is None:
            start = place
        if not here and start is not None:
            own = [float(value) for value in values[start:place] if not np.isnan(value)]
            if place - start >= rule.least:
                regions.append(Region("c", start, place, sum(own) / len(own) if own else float("nan")))
            start = None
    return regions


@settings(deadline=None)
@given(
    values=st.lists(VALUE, min_size=1, max_size=40),
    window=st.integers(1, 9),
    least=st.integers(1, 5),
    below=st.booleans(),
    threshold=st.sampled_from([-0.3, 0.1, 1.7]),
    block=st.sampled_from([1, 3, 7, 100]),
)
def test_regions_are_those_found_base_by_base(
    values: list[float], window: int, least: int, below: bool, threshold: float, block: int
) -> None:
    row = np.array(values, dtype=np.float32)
    rule = Rule(track="t", below=below, threshold=threshold, window=window, least=least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracks, "BLOCK", block)
        found = list(find_regions("c", row.size, lambda _, start, end: row[start:end], rule))
    want = slow_regions(row, rule)
    assert [(one.contig, one.start, one.end) for one in found] == [(one.contig, one.start, one.end) for one in want]
    np.testing.assert_allclose([one.mean for one in found], [one.mean for one in want])


def test_a_mean_slides_over_what_there_is() -> None:
    row = np.array([1, np.nan, 3, 5, np.nan, np.nan, np.nan], dtype=np.float32)
    np.testing.assert_allclose(sliding_mean(row, 1), row)
    np.testing.assert_allclose(sliding_mean(row, 3), [1, 2, 4, 4, 5, np.nan, np.nan])
    # an even window has one base more on the left
    np.testing.assert_allclose(sliding_mean(row, 2), [1, 1, 3, 4, 5, np.nan, np.nan])


def test_rules_are_read_and_written() -> None:
    assert Rule.parse("entropy<1.5", window=50, least=20) == Rule(
        track="entropy", below=True, threshold=1.5, window=50, least=20
    )
    assert Rule.parse(" logprob > -2e0 ", window=1, least=1) == Rule(track="logprob", below=False, threshold=-2.0)
    assert str(Rule.parse("logprob>-2", window=1, least=1)) == "logprob>-2"


@pytest.mark.parametrize(
    "text", ["", "entropy", "entropy=1", "entropy<", "<1", "entropy<one", "a<nan", "a<inf", "a<1<2"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    message = f"{text!r} is no rule for regions: it must be TRACK<NUMBER or TRACK>NUMBER"
    with pytest.raises(DataError, match=re.escape(message)):
        Rule.parse(text, window=1, least=1)


def test_bed_has_seven_columns(tmp_path: Path) -> None:
    rule = Rule(track="entropy", below=True, threshold=1.5)
    regions = [(Region("c|1", 0, 30, 1.25), rule, "+"), (Region("d", 7, 9, float("nan")), rule, ".")]
    assert write_bed(tmp_path / "x.bed", regions) == 2
    assert (tmp_path / "x.bed").read_text() == "c|1\t0\t30\tentropy<1.5\t0\t+\t1.25\nd\t7\t9\tentropy<1.5\t0\t.\tnan\n"
