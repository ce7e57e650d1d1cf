"""What makes a file of a whole table, chosen by the file's name: one of the formats, or the variants' own VCF."""

from functools import partial
from pathlib import Path

from data.errors import DataError
from evo_cli.outputs.formats import (
    GZIP_SUFFIXES,
    PARQUET,
    VCF_SUFFIXES,
    has_suffix,
    need_pyarrow,
    write_bgzip,
    write_parquet,
)
from evo_cli.outputs.partial import Finish
from evo_cli.outputs.vcf import write_vcf


def choose_maker(path: Path | None, *, variants: str | None) -> Finish | None:
    """What makes the file `path` of a TSV; None if it is that TSV itself.

    Args:
        path: None is stdout.
        variants: the VCF or BCF whose alleles the rows are of; None if they are of something else.

    Raises:
        DataError: this format cannot be made of these rows, or a library for it is missing.
    """
    if path is None:
        return None
    if has_suffix(path, VCF_SUFFIXES):
        if variants is None or variants == "-":
            raise DataError(f"{path}: VCF is written of variants that come from a VCF or BCF file").hint(
                "give the file's name, or write .tsv or .parquet"
            )
        return partial(write_vcf, Path(variants), path)
    if has_suffix(path, PARQUET):
        need_pyarrow(path)
        return write_parquet
    return write_bgzip if has_suffix(path, GZIP_SUFFIXES) else None
