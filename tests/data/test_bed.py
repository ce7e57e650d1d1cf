"""BED files: every way of writing a region, and an error with its line for what is none."""

import gzip
import io
import sys
from pathlib import Path

import pysam
import pytest

from data.bed import BedInterval, read_bed
from data.errors import DataError
from data.intervals import Interval


def regions(path: str | Path) -> list[tuple[str, int, int, str, str]]:
    found = list(read_bed(path))
    return [(one.interval.contig, one.interval.start, one.interval.end, one.name, one.strand) for one in found]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ROWS = "chr1\t0\t10\tgene a\t960\t+\nchr2\t5\t6\tb\t0\t-\n"
READ = [("chr1", 0, 10, "gene a", "+"), ("chr2", 5, 6, "b", "-")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROWS, READ),
        (ROWS.replace("\n", "\r\n"), READ),
        (ROWS.rstrip("\n"), READ),
        ("\n# note\n" + ROWS + "\n \t \n", READ),
        ('browser position chr7:1-9\nbrowser hide all\ntrack name="x y" itemRgb="On"\n' + ROWS, READ),
        ("track\n" + ROWS + "track type=bedGraph\n" + "chr1 1 2", [*READ, ("chr1", 1, 2, ".", ".")]),
        ("\ufeff" + ROWS, READ),
        ("chr1\t0\t10", [("chr1", 0, 10, ".", ".")]),
        ("chr1 0 10 x 0 -", [("chr1", 0, 10, "x", "-")]),
        ("chr1   0  10", [("chr1", 0, 10, ".", ".")]),
        ("chr1\t0\t10\t", [("chr1", 0, 10, ".", ".")]),
        ("chr1\t0\t10\tn\t.\t.", [("chr1", 0, 10, "n", ".")]),
        # what extends BED: bedGraph, BED12, narrowPeak
        ("chr1\t0\t10\t0.25", [("chr1", 0, 10, "0.25", ".")]),
        ("c\t0\t50\tt\t0\t+\t0\t50\t0,0,0\t2\t5,5\t0,45", [("c", 0, 50, "t", "+")]),
        ("c\t0\t50\tp\t0\t.\t182.0\t5.0\t-1\t25", [("c", 0, 50, "p", ".")]),
        # a contig may be called so; and positions may be long
        ("track\t0\t10\nbrowser\t1\t2", [("track", 0, 10, ".", "."), ("browser", 1, 2, ".", ".")]),
        ("HLA:1*2\t2147483648\t2147483650", [("HLA:1*2", 2147483648, 2147483650, ".", ".")]),
        # neither sorted nor apart
        ("b\t5\t9\na\t1\t6\na\t1\t6", [("b", 5, 9, ".", "."), ("a", 1, 6, ".", "."), ("a", 1, 6, ".", ".")]),
    ],
)
def test_what_is_read(tmp_path: Path, text: str, expected: list[tuple[str, int, int, str, str]]) -> None:
    assert regions(write(tmp_path / "a.bed", text)) == expected


def test_gzip_bgzip_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert regions(write(tmp_path / "a", gzip.compress(ROWS.encode()))) == READ
    with pysam.BGZFile(str(tmp_path / "b.bed.gz"), "wb") as file:
        file.write(ROWS.encode())
    assert regions(tmp_path / "b.bed.gz") == READ

    class Stdin:
        buffer = io.BytesIO(ROWS.encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert regions("-") == READ


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.bed: no region: the file is empty"),
        ("# only\ntrack name=x\n\n", "a.bed: no region: every line is empty, a comment or a track line"),
        (ROWS + "chr1\t5\n", "a.bed: line 3: 2 columns, a region has at least 3: 'chr1\\t5'"),
        ("chr1:1-5\n", "a.bed: line 1: 1 columns, a region has at least 3: 'chr1:1-5'"),
        ("chrom\tstart\tend\n", "a.bed: line 1: start must be a whole number of at most 18 digits, got 'start'"),
        ("c\t-1\t5\n", "a.bed: line 1: start must be a whole number of at most 18 digits, got '-1'"),
        ("c\t1\t5.0\n", "a.bed: line 1: end must be a whole number of at most 18 digits, got '5.0'"),
        ("c\t1\t1,000\n", "a.bed: line 1: end must be a whole number of at most 18 digits, got '1,000'"),
        ("c\t1\t²\n", "end must be a whole number of at most 18 digits, got '²'"),
        ("c\t1\t" + "9" * 5000, "end must be a whole number of at most 18 digits, got '9999"),
        (ROWS + "c\t5\t5\n", "a.bed: line 3: 'c\\t5\\t5' needs a contig and start < end"),
        ("c\t6\t5\n", "a.bed: line 1: 'c\\t6\\t5' needs a contig and start < end"),
        ("\t1\t5\n", "a.bed: line 1: '\\t1\\t5' needs a contig and start < end"),
        ("c\t1\t5\tn\t0\tx\n", "a.bed: line 1: the strand (column 6) must be +, - or ., got 'x'"),
        (b"c\t1\t5\t\xff\n", "a.bed: line 1: not UTF-8 text"),
        (gzip.compress(ROWS.encode())[:-5], "a.bed: the gzip data end before they should: the file is truncated"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        regions(write(tmp_path / "a.bed", text))
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.bed: cannot be read: No such file"):
        regions(tmp_path / "none.bed")


def test_reading_is_lazy(tmp_path: Path) -> None:
    stream = read_bed(write(tmp_path / "a.bed", "chr1\t0\t10\nbroken\n"))
    assert next(stream) == BedInterval(interval=Interval("chr1", 0, 10))
