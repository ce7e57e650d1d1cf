"""Taxonomy tags of records, from a TSV file with the columns `record` and `tag`.

A tag is ASCII text between bars, like `|d__Bacteria;p__Pseudomonadota|`. Knows the file, which is held in memory;
knows nothing of stores.
"""

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError

_EXAMPLE = "|d__Bacteria;p__Pseudomonadota|"


@dataclass(frozen=True, kw_only=True)
class Tags:
    """by_record: index into `texts` of every record named; texts: the distinct tags; sha256: of the file."""

    by_record: dict[str, int]
    texts: tuple[str, ...]
    sha256: str


def read_tags(path: Path) -> Tags:
    """Read a tag file. Raises DataError, naming file and line, for a missing column, a record named twice or a tag
    that is not printable ASCII between bars."""
    try:
        content = path.read_bytes()
        text = io.StringIO(content.decode("utf-8-sig"), newline=None)
    except OSError as error:
        raise DataError(f"{path}: the tags cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the tags are not UTF-8 text: {error.reason} at byte {error.start}") from error
    rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        by_record, texts = _parse(rows, path)
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: not a row of text: {error}") from error
    return Tags(by_record=by_record, texts=texts, sha256=hashlib.sha256(content).hexdigest())


def _parse(rows: Iterator[list[str]], path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    header = next(rows, [])
    missing = [column for column in ("record", "tag") if column not in header]
    if missing:
        raise DataError(f"{path}: line 1: no column {missing[0]!r}; the columns are {header}").hint(
            "the first line names the columns, parted by tabs: record and tag"
        )
    by_record: dict[str, int] = {}
    indices: dict[str, int] = {}
    record_column, tag_column = header.index("record"), header.index("tag")
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) <= max(record_column, tag_column):
            raise DataError(f"{path}: line {number}: {len(row)} columns, the header has {len(header)}")
        record, tag = row[record_column], row[tag_column]
        if record in by_record:
            raise DataError(f"{path}: line {number}: record {record!r} has a tag already").hint("keep one row a record")
        _check(tag, path, number)
        by_record[record] = indices.setdefault(tag, len(indices))
    return by_record, tuple(indices)


def _check(tag: str, path: Path, number: int) -> None:
    if len(tag) < 3 or tag[0] != "|" or tag[-1] != "|" or not (tag.isascii() and tag.isprintable()):
        raise DataError(f"{path}: line {number}: {tag!r} is not a tag: printable ASCII between bars").hint(
            f"write it like {_EXAMPLE}"
        )
