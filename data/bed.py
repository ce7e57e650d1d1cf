"""BED files: regions of a genome by contig, start and end, with a name and a strand where the file gives them.

Reads BED3 to BED12 and what extends them (narrowPeak, bedGraph): the columns after the sixth are not looked at, so a
BED12 line stands for its whole span, not for its blocks. Whether a contig exists is the reference's business.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from data.bgzip import refuse_cut_bgzip
from data.errors import DataError
from data.intervals import Interval
from data.lines import numbered_lines
from data.source import Source

_LONGEST_POSITION = 18
_STRANDS = ("+", "-", ".")


@dataclass(frozen=True, kw_only=True, slots=True)
class BedInterval:
    """A line of a BED file. name and strand are "." where the line has none; strand is "+", "-" or "."."""

    interval: Interval
    name: str = "."
    strand: str = "."


def read_bed(path: str | os.PathLike[str]) -> Iterator[BedInterval]:
    """The regions of a BED file in its order; plain, gzip or bgzip, `-` is standard input. Constant memory.

    Columns are separated by tabs, or in a line without tabs by blanks. Comments (#), empty lines and lines that begin
    with track or browser are passed over. Raises DataError, naming file and line, for fewer than three columns, a
    position that is no whole number, start >= end, an empty contig or an odd strand; and for a file without a region.
    """
    found = False
    with Source(path) as source:
        refuse_cut_bgzip(source.path)
        for number, line in numbered_lines(source):
            region = _region(line, f"{source.name}: line {number}")
            if region is not None:
                found = True
                yield region
        if not found:
            lack = "the file is empty" if not source.head else "every line is empty, a comment or a track line"
            raise DataError(f"{source.name}: no region: {lack}").hint("a region is a line CONTIG START END")


def _region(line: bytes, where: str) -> BedInterval | None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {_shown(line)}") from error
    if not text.strip() or text.startswith("#"):
        return None
    fields = text.split("\t") if "\t" in text else text.split()
    if _is_track_line(fields):
        return None
    if len(fields) < 3:
        raise DataError(f"{where}: {len(fields)} columns, a region has at least 3: {_shown(line)}").hint(
            "BED is CONTIG START END [NAME SCORE STRAND ...], separated by tabs, without a header line"
        )
    start, end = (_position(name, field, where) for name, field in zip(("start", "end"), fields[1:3], strict=True))
    strand = fields[5].strip() if len(fields) > 5 else "."
    if strand not in _STRANDS:
        raise DataError(f"{where}: the strand (column 6) must be +, - or ., got {strand!r}")
    if not (fields[0] and start < end):
        raise DataError(f"{where}: {_shown(line)} needs a contig and start < end").hint(
            "BED counts from 0 and leaves the end out: the first ten bases are 0 to 10"
        )
    name = fields[3].strip() if len(fields) > 3 else ""
    return BedInterval(interval=Interval(fields[0], start, end), name=name or ".", strand=strand)


def _is_track_line(fields: list[str]) -> bool:
    """A contig may be called track, too: then a number follows."""
    return fields[0].split(" ")[0] in ("track", "browser") and not (len(fields) > 1 and fields[1].strip().isdigit())


def _position(name: str, field: str, where: str) -> int:
    digits = field.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_POSITION):
        raise DataError(
            f"{where}: {name} must be a whole number of at most {_LONGEST_POSITION} digits, got {field[:60]!r}"
        ).hint("BED is CONTIG START END ...; a header line must begin with #")
    return int(digits)


def _shown(line: bytes) -> str:
    """The beginning of a line, for a message."""
    text = line[:60].decode("utf-8", "replace")
    return repr(text + "..." if len(line) > 60 else text)
