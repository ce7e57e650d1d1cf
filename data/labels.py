"""What is known of variants: a field of a VCF's INFO, or a column of a table, for each allele.

Alleles are matched by contig name, position, REF and ALT as they are written.
"""

import csv
import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pysam

from data.errors import DataError
from data.lines import open_table

Key = tuple[str, int, str, str]
"""Contig, position (1-based), REF and ALT, upper-case."""

_MISSING = {"", ".", "na", "n/a", "nan", "none", "null"}
_PLACE = ("chrom", "pos", "ref", "alt")
_VCF = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")


def read_labels(path: str | os.PathLike[str], fields: list[str]) -> Iterator[tuple[Key, Mapping[str, str]]]:
    """The named fields of every allele, as text; see `is_missing` for where there is no value.

    A VCF or BCF gives INFO fields: of those with a value for each ALT, or for REF and each ALT, that of the allele. Any
    other file is a table with a header, tab- or comma-separated, whose columns chrom, pos, ref and alt name the allele.

    Raises:
        DataError: the file cannot be read, or has no such field.
    """
    path = Path(path)
    if is_vcf(path):
        yield from _of_vcf(path, fields)
        return
    try:
        yield from _of_table(path, fields)
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from error


def is_vcf(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name is that of a VCF or BCF."""
    return os.fspath(path).lower().endswith(_VCF)


def is_missing(text: str) -> bool:
    """Whether a field says that there is no value."""
    return text.lower() in _MISSING


def _of_vcf(path: Path, fields: list[str]) -> Iterator[tuple[Key, Mapping[str, str]]]:
    path.open("rb").close()  # pysam calls a file that is not there damaged
    verbosity = pysam.set_verbosity(0)
    number = 0
    try:
        with pysam.VariantFile(os.fspath(path)) as file:
            known = list(file.header.info)
            for name in fields:
                if name not in known:
                    raise DataError(f"{path}: INFO has no field `{name}`").hint(f"its fields: {', '.join(known)}")
            counts = {name: file.header.info[name].number for name in fields}
            for record in file:
                number += 1
                for place, alt in enumerate(record.alts or ()):
                    key = record.chrom, record.pos, str(record.ref).upper(), alt.upper()
                    yield key, {name: _info(record.info.get(name), counts[name], place) for name in fields}
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: record {number + 1}: cannot be read as VCF: {error}") from error
    finally:
        pysam.set_verbosity(verbosity)


def _info(value: object, count: int | str | None, place: int) -> str:
    """The text of an INFO field for the ALT at a place; `count` is its Number in the header."""
    values = value if isinstance(value, tuple) else (value,)
    if count in ("A", "R"):
        place += count == "R"
        values = values[place : place + 1]
    return ",".join("" if one is None else str(one) for one in values)


def _of_table(path: Path, fields: list[str]) -> Iterator[tuple[Key, Mapping[str, str]]]:
    with open_table(path) as stream:
        first = stream.readline()
        header = next(csv.reader([first], delimiter="\t" if "\t" in first else ","), [])
        names = {name.strip().lstrip("#").lower(): column for column, name in enumerate(header)}
        for name in (*_PLACE, *fields):
            if name.lower() not in names:
                raise DataError(f"{path}: has no column `{name}`").hint(f"its columns: {', '.join(header) or 'none'}")
        chrom, pos, ref, alt = (names[name] for name in _PLACE)
        columns = {name: names[name.lower()] for name in fields}
        rows = csv.reader(stream, delimiter="\t" if "\t" in first else ",")
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{path}: line {number}: {len(row)} columns, the header names {len(header)}")
            if not row[pos].isascii() or not row[pos].isdigit():
                raise DataError(f"{path}: line {number}: pos must be a whole number, not {row[pos]!r}")
            key = row[chrom], int(row[pos]), row[ref].upper(), row[alt].upper()
            yield key, {name: row[column].strip() for name, column in columns.items()}
