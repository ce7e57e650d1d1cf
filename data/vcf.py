"""Variants from VCF and BCF: one allele for every ALT, in the order of the file, nothing dropped and nothing judged.

Text VCF (plain, gzip, bgzip, standard input) is read here, as only its first five columns matter and an error must name
its line; BCF is read by pysam. Contigs need not be declared in the header. Whether an allele can be scored, and against
which reference, is data.variants' business.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam

from data.bgzip import refuse_cut_bgzip
from data.errors import DataError
from data.lines import numbered_lines
from data.source import STDIN, Source

_COLUMNS = [b"CHROM", b"POS", b"ID", b"REF", b"ALT"]
_LONGEST_POSITION = 18
_BCF = b"BCF"


@dataclass(frozen=True, kw_only=True, slots=True)
class Allele:
    """One ALT of a record as it is written: `pos` is 1-based; `id` and `alt` are "." where the file says so."""

    chrom: str
    pos: int
    id: str
    ref: str
    alt: str


def read_vcf(path: str | os.PathLike[str]) -> Iterator[Allele]:
    """The alleles of a VCF or BCF file, told apart by content; `-` is standard input (VCF only). Constant memory.

    A record without an alternative (ALT ".") gives one allele with alt ".". Raises DataError, naming file and line (of
    BCF: the record), for what is not VCF: no header, too few columns, a position that is no number, an empty field.
    """
    with Source(path) as source:
        refuse_cut_bgzip(source.path)
        if source.head.startswith(_BCF):
            if source.path == STDIN:
                raise DataError("standard input: is BCF, which is read from files only").hint(
                    "`bcftools view` makes VCF of it"
                )
        else:
            yield from _alleles(source)
            return
    yield from _read_bcf(Path(path))


def _alleles(source: Source) -> Iterator[Allele]:
    columns = 0
    for number, line in numbered_lines(source):
        if not line:
            continue
        if columns:
            yield from _record(line, columns, f"{source.name}: line {number}")
        elif line.startswith(b"#CHROM"):
            columns = _header(line, f"{source.name}: line {number}")
        elif not line.startswith(b"##"):
            raise DataError(f"{source.name}: line {number}: no VCF header: {_shown(line)} stands before #CHROM").hint(
                "VCF begins with ##fileformat=VCFv4.x and a line #CHROM POS ID REF ALT ..., separated by tabs"
            )
    if not columns:
        lack = "is empty" if not source.head else "has no line #CHROM POS ID REF ALT ..."
        raise DataError(f"{source.name}: not VCF: the file {lack}")


def _header(line: bytes, where: str) -> int:
    """The number of columns that the header names."""
    names = line[1:].rstrip().split(b"\t")
    if names[: len(_COLUMNS)] != _COLUMNS:
        raise DataError(f"{where}: the columns are {_shown(line)}, not #CHROM POS ID REF ALT ...").hint(
            "the columns of VCF are separated by single tabs"
        )
    return len(names)


def _record(line: bytes, columns: int, where: str) -> Iterator[Allele]:
    if line.startswith(b"#"):
        raise DataError(f"{where}: a header line {_shown(line)} among the records").hint(
            "were two files joined? `bcftools concat` joins them"
        )
    found = line.count(b"\t") + 1
    if found < columns:
        raise DataError(f"{where}: {found} columns, the header names {columns}: {_shown(line)}").hint(
            "columns are separated by single tabs; a last line that is too short means a truncated file"
        )
    try:
        chrom, position, name, ref, alts = (field.decode() for field in line.split(b"\t", 5)[:5])
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {_shown(line)}") from error
    if not (position.isascii() and position.isdigit() and len(position) <= _LONGEST_POSITION):
        raise DataError(f"{where}: POS must be a whole number of at most {_LONGEST_POSITION} digits, got {position!r}")
    alleles = alts.split(",")
    if not (chrom and name and ref and all(alleles)):
        raise DataError(f"{where}: CHROM, ID, REF or an ALT is empty: {_shown(line)}").hint("a missing value is a dot")
    for alt in alleles:
        yield Allele(chrom=chrom, pos=int(position), id=name, ref=ref, alt=alt)


def _shown(line: bytes) -> str:
    """The beginning of a line, for a message."""
    text = line[:60].decode("utf-8", "replace")
    return repr(text + "..." if len(line) > 60 else text)


def _read_bcf(path: Path) -> Iterator[Allele]:
    verbosity = pysam.set_verbosity(0)
    number = 0
    try:
        with pysam.VariantFile(os.fspath(path)) as file:
            for record in file:
                number += 1
                name, ref = record.id or ".", record.ref or "."
                for alt in record.alts or (".",):
                    yield Allele(chrom=record.chrom, pos=record.pos, id=name, ref=ref, alt=alt)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: record {number + 1}: cannot be read as BCF: {error}").hint(
            "`bcftools view` shows what is wrong with it"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)
