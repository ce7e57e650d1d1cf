"""Scores in the INFO field of the variants' own VCF; everything else of its lines stays as it is.

Knows the text of VCF as far as INFO; knows nothing of how scores come about.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pysam
from pysam import bcftools

from data.errors import DataError
from data.source import Source
from evo_cli.outputs.formats import has_suffix, read_rows, write_bgzip

_PLACE = ("chrom", "pos", "id", "ref", "alt")
_INFO = 7  # the column's index
_REST = ("QUAL", "FILTER", "INFO")
_PREFIX = "EVO_"
_TYPES = dict.fromkeys(("status", "precision", "normalised"), "String") | dict.fromkeys(
    ("window_start", "window_length", "offset", "background"), "Integer"
)
_MEANINGS = {
    "status": "ok, or why the allele has no score",
    "delta": "log-likelihood with the allele minus that with REF, mean of the strands that were scored",
    "delta_fwd": "EVO_DELTA of the forward strand",
    "delta_rev": "EVO_DELTA of the reverse strand",
    "ref_ll": "log-likelihood of the window with REF, natural logarithm",
    "alt_ll": "log-likelihood of the window with the allele, natural logarithm",
    "window_start": "first base of the window, 0-based",
    "window_length": "bases of the window",
    "offset": "index of the variant in the window",
    "delta_mean": "difference of the log-likelihoods a base",
    "normalised": "whether the allele is left-aligned and as short as it can be",
    "background": "matched random variants of the same window",
    "percentile": "percent of these whose EVO_DELTA is lower",
    "z": "distance of EVO_DELTA from their mean in their standard deviations",
}


def info_field(column: str) -> str:
    """The INFO field that holds a column of a table of scores; any other name stays as it is."""
    return f"{_PREFIX}{column.upper()}" if column in _MEANINGS else column


def write_vcf(variants: Path, name: Path, table: Path, target: Path) -> None:
    """Write `variants` with the scores of `table`, one row an allele in order, as INFO fields EVO_... (Number=A).

    Args:
        variants: VCF or BCF.
        name: what `target` will be called: its suffix tells plain, bgzip or BCF.

    Raises:
        DataError: the table has other alleles than the file.
    """
    rows = read_rows(table)
    scores = _Scores(next(rows), rows, variants)
    with TemporaryDirectory(prefix=f".{name.name}.", dir=target.parent) as folder:
        plain = Path(folder, "plain.vcf")
        with plain.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(f"{text}\n" for text in _annotated(_lines(variants), scores))
        if has_suffix(name, ".bcf"):
            _to_bcf(plain, target, name)
        elif has_suffix(name, ".vcf"):
            shutil.copyfile(plain, target)
        else:
            write_bgzip(plain, target)


class _Scores:
    """The rows of a table, taken record by record."""

    def __init__(self, columns: Sequence[str], rows: Iterator[tuple[str, ...]], variants: Path) -> None:
        self.fields = [(index, name) for index, name in enumerate(columns) if name not in _PLACE]
        self._rows = rows
        self._variants = variants

    def of(self, cells: Sequence[str]) -> list[str]:
        """The INFO fields of the record with these cells."""
        scored = list(islice(self._rows, cells[4].count(",") + 1))
        chrom, pos, name, ref, alts = cells[: len(_PLACE)]
        # a position may be written with zeros before it
        if [row[: len(_PLACE)] for row in scored] != [
            (chrom, str(int(pos)), name, ref, alt) for alt in alts.split(",")
        ]:
            raise DataError(
                f"{self._variants}: {chrom}:{pos} is not the variant that was scored here: the file has changed"
            ).hint("score it again, with --overwrite")
        return [
            f"{_PREFIX}{name.upper()}=" + ",".join("." if row[index] == "NA" else row[index] for row in scored)
            for index, name in self.fields
        ]

    def end(self) -> None:
        """Check that no row is left."""
        if row := next(self._rows, None):
            raise DataError(f"{self._variants}: ends before {row[0]}:{row[1]}, which was scored: the file has changed")


def _annotated(lines: Iterator[str], scores: _Scores) -> Iterator[str]:
    for whole in lines:
        text = whole.removesuffix("\r")
        end = whole[len(text) :]
        if text.startswith("#CHROM"):
            yield from (_header(name) + end for _, name in scores.fields)
            columns = text.rstrip().split("\t")
            yield "\t".join([*columns, *_REST[len(columns) - len(_PLACE) :]]) + end if len(columns) <= _INFO else whole
        elif text and not text.startswith("##"):
            cells = text.split("\t")
            cells += ["."] * (_INFO + 1 - len(cells))
            kept = [item for item in cells[_INFO].split(";") if item not in ("", ".") and not item.startswith(_PREFIX)]
            cells[_INFO] = ";".join([*kept, *scores.of(cells)])
            yield "\t".join(cells) + end
        elif not text.startswith(f"##INFO=<ID={_PREFIX}"):  # of an earlier scoring
            yield whole
    scores.end()


def _header(name: str) -> str:
    meaning = _MEANINGS.get(name, f"column {name} of evo score")
    kind = _TYPES.get(name, "Float")
    return f'##INFO=<ID={_PREFIX}{name.upper()},Number=A,Type={kind},Description="{meaning}">'


def _lines(variants: Path) -> Iterator[str]:
    """The lines of a VCF, or of what BCF is in text."""
    with Source(variants) as source:
        if not source.head.startswith(b"BCF"):
            rest = b""
            for chunk in source.chunks(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (text.decode("utf-8", "surrogateescape") for text in lines)
            if rest:
                yield rest.decode("utf-8", "surrogateescape")
            return
    with pysam.VariantFile(os.fspath(variants)) as file:
        yield from str(file.header).rstrip("\n").split("\n")
        for record in file:
            yield str(record).rstrip("\n")


def _to_bcf(plain: Path, target: Path, name: Path) -> None:
    # not pysam's own writer: it gives symbolic alleles an END that the header does not declare
    verbosity = pysam.set_verbosity(0)
    try:
        bcftools.view("--no-version", "-O", "b", "-o", os.fspath(target), os.fspath(plain), catch_stdout=False)
    except pysam.SamtoolsError as error:
        raise DataError(f"{name}: these variants cannot be written as BCF").hint(
            "BCF wants every contig and field declared in the header; .vcf.gz takes them as they are"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)
