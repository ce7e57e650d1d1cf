"""Intervals: 0-based half-open inside, 1-based inclusive in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.intervals import Interval


@pytest.mark.parametrize(
    ("text", "contig", "start", "end"),
    [
        ("chr1:1-1", "chr1", 0, 1),
        ("chr17:41,276,045-41,276,132", "chr17", 41276044, 41276132),
        (" chrM:5-10 ", "chrM", 4, 10),
        ("1:2-501:3-4", "1:2-501", 2, 4),
        ("HLA-A*01:01:01:01:1-100", "HLA-A*01:01:01:01", 0, 100),
        ("two words:7-9", "two words", 6, 9),
    ],
)
def test_parse(text: str, contig: str, start: int, end: int) -> None:
    interval = Interval.parse(text)
    assert (interval.contig, interval.start, interval.end) == (contig, start, end)
    assert len(interval) == end - start
    assert Interval.parse(str(interval)) == interval


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1", "region 'chr1' is not of the form contig:first-last"),
        ("chr1:5", "region 'chr1:5' is not of the form contig:first-last"),
        (":1-5", "region ':1-5' is not of the form"),
        ("chr1:-1-5", "region 'chr1:-1-5' is not of the form"),
        ("chr1:٣-٤", "is not of the form"),
        ("chr1:0-5", "1 <= first <= last must hold, got first 0 and last 5"),
        ("chr1:6-5", "1 <= first <= last must hold, got first 6 and last 5"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Interval.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(("contig", "start", "end"), [("", 0, 1), ("a", -1, 1), ("a", 3, 3), ("a", 4, 3)])
def test_impossible_intervals_are_refused(contig: str, start: int, end: int) -> None:
    with pytest.raises(DataError):
        Interval(contig, start, end)


@given(contig=st.text(min_size=1).filter(lambda name: name == name.strip() and "\n" not in name), numbers=st.data())
def test_text_round_trip(contig: str, numbers: st.DataObject) -> None:
    start = numbers.draw(st.integers(0, 2**40))
    interval = Interval(contig, start, start + numbers.draw(st.integers(1, 2**40)))
    assert Interval.parse(str(interval)) == interval
