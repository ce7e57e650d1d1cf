"""Files of embeddings: HDF5, NumPy and Parquet, each written from one stream of records and their vectors.

Knows nothing of models, nor of where the vectors come from.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.atomic import replacing
from data.errors import DataError
from evo_cli.embedding.parts import Entry, Vectors

if TYPE_CHECKING:
    import h5py
    import pyarrow

Stream = Iterable[tuple[Entry, Vectors]]
_PIECE_BYTES = 16 << 20  # of vectors in memory at once
_CHUNK_BYTES = 256 << 10
_REASON = re.compile(r"error message = '([^']+)'")  # in what HDF5 says of a file
_INTERVAL_COLUMNS = ("start", "end", "name", "strand")


class Format(StrEnum):
    """Kinds of files, told by the suffix."""

    HDF5 = "hdf5"
    NUMPY = "numpy"
    PARQUET = "parquet"


_SUFFIXES = {".h5": Format.HDF5, ".hdf5": Format.HDF5, ".npy": Format.NUMPY, ".parquet": Format.PARQUET}


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a file of embeddings holds.

    width: of a vector. per_base: a record has a vector a base. intervals: it has one an interval. facts: what the file
    says of itself, as JSON has it; `layers` is among them.
    """

    layers: tuple[str, ...]
    width: int
    dtype: str
    per_base: bool
    intervals: bool
    facts: Mapping[str, Any]


def format_of(path: Path) -> Format:
    """The format that a file's suffix asks for.

    Raises:
        DataError: no format has that suffix, or what writes it is not installed.
    """
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        other = f"{path.suffix} files" if path.suffix else "files without a suffix"
        raise DataError(f"{path}: embeddings are written to {', '.join(_SUFFIXES)}, not to {other}")
    if kind is Format.PARQUET and find_spec("pyarrow") is None:
        raise DataError(f"{path}: Parquet is written by pyarrow, which is not installed").hint(
            "pip install 'evo-sh2[parquet]', or write .h5 or .npy"
        )
    return kind


def write_embeddings(path: Path, kind: Format, contents: Contents, stream: Stream) -> list[tuple[str, str]]:
    """Write a file, which appears when it is whole; one of NumPy has two more beside it, PATH.ids.tsv and .meta.json.

    Returns:
        Ids that stand under another name in the file, and that name.
    """
    renamed: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        # last in, first out: the file itself comes last, when what explains it is there
        temporary = stack.enter_context(replacing(path))
        match kind:
            case Format.HDF5:
                _write_hdf5(temporary, contents, stream, renamed)
            case Format.NUMPY:
                ids = stack.enter_context(replacing(path.with_name(f"{path.name}.ids.tsv")))
                meta = stack.enter_context(replacing(path.with_name(f"{path.name}.meta.json")))
                _write_numpy(temporary, ids, contents, stream)
                meta.write_text(json.dumps(contents.facts, indent=2) + "\n")
            case Format.PARQUET:
                _write_parquet(temporary, contents, stream)
    return renamed


def _write_hdf5(path: Path, contents: Contents, stream: Stream, renamed: list[tuple[str, str]]) -> None:
    """`embeddings/ID` [layers, width] or, per base or interval, [bases or intervals, layers, width], in order."""
    import h5py

    with _hdf5(path) as file:
        for name, value in contents.facts.items():
            file.attrs[name] = str(value) if isinstance(value, str) else json.dumps(value)
        file.attrs["layers"] = list(contents.layers)
        group = file.create_group("embeddings", track_order=True)
        places = file.create_group("intervals", track_order=True) if contents.intervals else None
        for entry, rows in stream:
            key = _free_key(entry.id, group)
            if key != entry.id:
                renamed.append((entry.id, key))
            _write_record(group, key, contents, rows)
            if places is not None:
                table = [tuple(getattr(place, name) for name in _INTERVAL_COLUMNS) for place in entry.places or ()]
                text = h5py.string_dtype()
                kind = list(zip(_INTERVAL_COLUMNS, (np.int64, np.int64, text, text), strict=True))
                places.create_dataset(key, data=np.array(table, dtype=kind)).flush()


def _write_record(group: "h5py.Group", key: str, contents: Contents, rows: Vectors) -> None:
    single = not (contents.per_base or contents.intervals)
    vector_bytes = contents.width * np.dtype(contents.dtype).itemsize
    dataset = group.create_dataset(
        key,
        shape=rows.shape[1:] if single else rows.shape,
        dtype=contents.dtype,
        chunks=(1, contents.width) if single else (min(len(rows), -(-_CHUNK_BYTES // vector_bytes)), 1, contents.width),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    if single:
        dataset[:] = rows[0]
    else:
        for start, piece in _pieces(rows, contents.dtype):
            dataset[start : start + len(piece)] = piece
    # a full disk shows here, and not when the dataset is dropped, where nobody would hear of it
    dataset.flush()


def _free_key(name: str, group: "h5py.Group") -> str:
    """The id as a name within an HDF5 group, where `/` divides and every name is there once."""
    key = name.replace("/", "_") or "_"
    key = "_" if key == "." else key
    free, number = key, 1
    while free in group:
        number += 1
        free = f"{key}.{number}"
    return free


def _write_numpy(path: Path, ids: Path, contents: Contents, stream: Stream) -> None:
    """[rows, layers, width], and a table that tells whose the rows are."""
    shape = len(contents.layers), contents.width
    total = 0
    with path.open("w+b") as file, ids.open("w", encoding="utf-8") as table:
        table.write("\t".join(["first_row", "rows", "id", *_INTERVAL_COLUMNS]) + "\n")
        _npy_header(file, contents.dtype, (0, *shape))
        for entry, rows in stream:
            for cells in _table_rows(entry, total):
                table.write("\t".join(map(str, cells)) + "\n")
            for _, piece in _pieces(rows, contents.dtype):
                file.write(piece.tobytes())
            total += entry.rows
        # NumPy leaves room in a header for another number of rows
        file.seek(0)
        _npy_header(file, contents.dtype, (total, *shape))


def _npy_header(file: Any, dtype: str, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _table_rows(entry: Entry, first: int) -> Iterator[tuple[object, ...]]:
    if entry.places is None:
        yield first, entry.rows, entry.id, 0, entry.length, ".", "."
        return
    for number, place in enumerate(entry.places):
        yield first + number, 1, entry.id, place.start, place.end, place.name, place.strand


def _write_parquet(path: Path, contents: Contents, stream: Stream) -> None:
    """A row a vector: id, what it stands for, and a column of lists a layer."""
    import pyarrow as pa
    from pyarrow import parquet

    number = {"float32": pa.float32(), "float16": pa.float16()}[contents.dtype]
    columns: dict[str, Any] = {"id": pa.string()}
    if contents.per_base:
        columns["position"] = pa.int64()
    if contents.intervals:
        columns |= dict(zip(_INTERVAL_COLUMNS, (pa.int64(), pa.int64(), pa.string(), pa.string()), strict=True))
    columns |= {layer: pa.list_(number, contents.width) for layer in contents.layers}
    schema = pa.schema(columns).with_metadata({"evo": json.dumps(contents.facts)})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _gather(_flat(stream, contents), _PIECE_BYTES):
            writer.write_table(_table(batch, schema, contents))


def _flat(stream: Stream, contents: Contents) -> Iterator[tuple[dict[str, Any], Vectors]]:
    """The rows in pieces, with the cells that stand before their vectors."""
    for entry, rows in stream:
        for start, piece in _pieces(rows, contents.dtype):
            cells: dict[str, Any] = {"id": [entry.id] * len(piece)}
            if contents.per_base:
                cells["position"] = list(range(start, start + len(piece)))
            if entry.places is not None:
                some = entry.places[start : start + len(piece)]
                cells |= {name: [getattr(place, name) for place in some] for name in _INTERVAL_COLUMNS}
            yield cells, piece


def _gather(
    pieces: Iterable[tuple[dict[str, Any], Vectors]], size: int
) -> Iterator[list[tuple[dict[str, Any], Vectors]]]:
    """Pieces, enough at a time for a row group."""
    held: list[tuple[dict[str, Any], Vectors]] = []
    room = size
    for piece in pieces:
        held.append(piece)
        room -= piece[1].nbytes
        if room <= 0:
            yield held
            held, room = [], size
    if held:
        yield held


def _table(
    batch: list[tuple[dict[str, Any], Vectors]], schema: "pyarrow.Schema", contents: Contents
) -> "pyarrow.Table":
    import pyarrow as pa

    names = batch[0][0].keys()
    arrays = [
        pa.array([cell for cells, _ in batch for cell in cells[name]], type=schema.field(name).type) for name in names
    ]
    vectors = np.concatenate([piece for _, piece in batch])
    for number in range(len(contents.layers)):
        flat = pa.array(np.ascontiguousarray(vectors[:, number]).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, contents.width))
    return pa.Table.from_arrays(arrays, schema=schema)


def _pieces(rows: Vectors, dtype: str) -> Iterator[tuple[int, Vectors]]:
    """Rows in the dtype that is wanted, a few megabytes at a time, with the number of the first."""
    step = max(1, _PIECE_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step].astype(dtype)


@contextlib.contextmanager
def _hdf5(path: Path) -> "Iterator[h5py.File]":
    """Yield a new HDF5 file; a full disk is an OSError like any other's."""
    import h5py

    file = h5py.File(path, "w", libver=("v110", "latest"), locking=False)
    try:
        yield file
        file.flush()
        file.close()
    except (OSError, RuntimeError) as failure:  # h5py's words for a disk that is full
        reason = _REASON.search(str(failure))
        raise DataError(f"cannot write the output: {reason[1].lower() if reason else failure}").hint(
            "make room, and repeat the command: what is done is kept"
        ) from failure
    finally:
        if file:
            _discard(file)


def _discard(file: "h5py.File") -> None:
    """Close without writing: a file that HDF5 cannot flush would crash the process at its end."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, file.id.get_vfd_handle())
    os.close(nowhere)
    with contextlib.suppress(RuntimeError):  # what cannot be resized: the file goes away in any case
        file.close()
