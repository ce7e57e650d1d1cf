"""The formats of a table, told by the suffix of its file: TSV, gzipped, or Parquet.

Knows how each is made of a TSV that is whole, and read; knows nothing of how rows come about.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from data.errors import DataError

PARQUET = ".parquet"
VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
GZIP_SUFFIXES = (".gz", ".bgz")
_WHOLE_NUMBERS = frozenset({"background", "pos", "length", "window_start", "window_length", "offset"})
_TEXTS = frozenset({"record", "chrom", "id", "ref", "alt", "status", "precision", "normalised"})

_NUMBER_FORMATS = {"delta_mean": ".4e", "percentile": ".2f", "z": ".4f"}  # where it is not six decimals


def has_suffix(path: str | Path, suffixes: str | tuple[str, ...]) -> bool:
    """Whether a file's name ends so, in whatever case."""
    return str(path).lower().endswith(suffixes)


def need_pyarrow(path: Path) -> None:
    """Refuse a Parquet file where what reads and writes it is missing.

    Raises:
        DataError: so it is.
    """
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: Parquet needs the package pyarrow").hint("pip install 'evo-sh2[parquet]'")


def write_bgzip(plain: Path, compressed: Path) -> None:
    """Compress a file in blocks: gzip to everyone, and tabix can index it."""
    import pysam

    pysam.tabix_compress(str(plain), str(compressed), force=True)


def read_rows(path: Path) -> Iterator[tuple[str, ...]]:
    """The cells of a table that was written in any format but VCF, as they stand in the TSV; the header first.

    Raises:
        DataError: it is not such a table.
    """
    if has_suffix(path, PARQUET):
        yield from _read_parquet(path)
        return
    from data.source import Source

    with Source(path) as source:
        rest = b""
        for chunk in source.chunks(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            for text in lines:
                yield tuple(text.decode().split("\t"))
    if rest:
        raise DataError(f"{path}: its last line is cut off")


def write_parquet(table: Path, target: Path) -> None:
    """Columns of 64-bit numbers or of text; NA is null."""
    import pyarrow
    from pyarrow import csv, parquet

    with table.open(encoding="utf-8") as file:
        names = file.readline().rstrip("\n").split("\t")
    types = {name: _arrow_type(name) for name in names}
    reader = csv.open_csv(
        table,
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False),
        convert_options=csv.ConvertOptions(column_types=types, null_values=["NA"], strings_can_be_null=False),
    )
    schema = pyarrow.schema(list(types.items()))
    with parquet.ParquetWriter(target, schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _arrow_type(name: str) -> object:
    import pyarrow

    if name in _TEXTS:
        return pyarrow.string()
    return pyarrow.int64() if name in _WHOLE_NUMBERS else pyarrow.float64()


def _read_parquet(path: Path) -> Iterator[tuple[str, ...]]:
    need_pyarrow(path)
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    with file:
        yield tuple(file.schema_arrow.names)
        for batch in file.iter_batches():
            formats = [_NUMBER_FORMATS.get(name, ".6f") for name in batch.schema.names]
            columns = zip(batch.columns, formats, strict=True)
            yield from zip(
                *([_cell(value, form) for value in column.to_pylist()] for column, form in columns), strict=True
            )


def _cell(value: object, form: str) -> str:
    if value is None:
        return "NA"
    return format(value, form) if isinstance(value, float) else str(value)
