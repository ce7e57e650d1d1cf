"""The token store, written: tokens and records as they come, in bounded memory, then the segments and the metadata.

Layout: data/store.py. Knows HDF5 columns; knows nothing of sequence files, nor how splits are decided.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import numpy.typing as npt

from data.store import FORMAT, SEGMENT, VERSION, Split
from data.tokenizer import EOD

_TOKEN_CHUNK = 128 << 10
_TOKEN_BUFFER = 4 << 20
_ROW_CHUNK = 4096
_TEXT_CHUNK = 32 << 10
_TEXT_BUFFER = 8 << 20
BATCH = 1 << 16
"""Records held before they are written, and read back at a time."""


class RecordRow(NamedTuple):
    """What the index keeps of a record. offset: its first token; content_hash: 16 bytes; tag: -1 for none."""

    name: str
    description: str
    source: int
    offset: int
    length: int
    content_hash: bytes
    tag: int


class RecordBatch(NamedTuple):
    """Neighbouring rows of the index, read back. first: number of the first; the rest has N entries each."""

    first: int
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    tag: npt.NDArray[np.int64]
    content_hash: list[bytes]

    def part(self, start: int, end: int) -> "RecordBatch":
        """Rows start..end of the batch, half-open."""
        rows = slice(start, end)
        return RecordBatch(
            self.first + start, self.offset[rows], self.length[rows], self.tag[rows], self.content_hash[rows]
        )


class _Column:
    """A dataset that grows at its end."""

    def __init__(
        self, group: h5py.Group, name: str, dtype: npt.DTypeLike, tail: tuple[int, ...] = (), chunk: int = _ROW_CHUNK
    ) -> None:
        packed: dict[str, Any] = {} if name == "tokens" else {"compression": "gzip", "compression_opts": 1}
        self.dataset = group.create_dataset(
            name, shape=(0, *tail), maxshape=(None, *tail), dtype=dtype, chunks=(chunk, *tail), **packed
        )

    def append(self, rows: npt.NDArray[Any]) -> None:
        if not len(rows):
            return
        start = self.dataset.shape[0]
        self.dataset.resize(start + len(rows), axis=0)
        self.dataset[start:] = rows


class _TextColumn:
    """Strings end to end, and where each ends."""

    def __init__(self, group: h5py.Group, name: str) -> None:
        self._bytes = _Column(group, f"{name}_bytes", np.uint8, chunk=_TEXT_CHUNK)
        self._end = _Column(group, f"{name}_end", np.uint64)
        self._size = 0

    def append(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8") for text in texts]
        ends = self._size + np.cumsum([len(text) for text in encoded], dtype=np.uint64)
        self._bytes.append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        self._end.append(ends)
        self._size = int(ends[-1]) if len(ends) else self._size


class StoreWriter:
    """Writes one store. Use it as a context manager; call `finish` last, or what it wrote is not a store.

    position: the number of tokens written so far.
    """

    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path, "w", libver=("v110", "latest"), locking=False)
        self._tokens = _Column(self._file, "tokens", np.uint8, chunk=_TOKEN_CHUNK)
        group = self._file.create_group("records")
        self._columns = {
            "source": _Column(group, "source", np.uint32),
            "offset": _Column(group, "offset", np.uint64),
            "length": _Column(group, "length", np.uint64),
            "tag": _Column(group, "tag", np.int64),
        }
        self._hash = _Column(group, "hash", np.uint8, (16,))
        self._texts = {name: _TextColumn(group, name) for name in ("name", "description")}
        segments = self._file.create_group("segments")
        self._segments = {split: _Column(segments, split.value, SEGMENT) for split in Split}
        self._digest = hashlib.sha256()
        self._pending = bytearray()
        self._rows: list[RecordRow] = []
        self._text_size = 0
        self.position = 0

    def add_bases(self, bases: bytes) -> None:
        """Bases of the record that is open."""
        self._pending += bases
        self.position += len(bases)
        if len(self._pending) >= _TOKEN_BUFFER:
            self._flush_tokens()

    def end_record(self, row: RecordRow) -> None:
        """Close the record whose bases were added last."""
        self._pending.append(EOD)
        self.position += 1
        self._rows.append(row)
        self._text_size += len(row.name) + len(row.description)
        if len(self._rows) >= BATCH or self._text_size >= _TEXT_BUFFER:
            self._flush_rows()

    def _flush_tokens(self) -> None:
        self._digest.update(self._pending)
        self._tokens.append(np.frombuffer(self._pending, dtype=np.uint8))
        self._pending = bytearray()

    def _flush_rows(self) -> None:
        for name, column in self._columns.items():
            column.append(np.array([getattr(row, name) for row in self._rows], dtype=column.dataset.dtype))
        for name, text in self._texts.items():
            text.append([getattr(row, name) for row in self._rows])
        hashes = b"".join(row.content_hash for row in self._rows)
        self._hash.append(np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 16))
        self._rows, self._text_size = [], 0

    def record_batches(self) -> Iterator[RecordBatch]:
        """The index so far, in batches."""
        self._flush_rows()
        for first in range(0, self._hash.dataset.shape[0], BATCH):
            rows = slice(first, first + BATCH)
            offset, length, tag = (
                self._columns[name].dataset[rows].astype(np.int64) for name in ("offset", "length", "tag")
            )
            hashes = [row.tobytes() for row in self._hash.dataset[rows]]
            yield RecordBatch(first, offset, length, tag, hashes)

    def add_segments(self, split: Split, rows: npt.NDArray[np.void]) -> None:
        """More segments of a split, SEGMENT [N], ordered by start."""
        self._segments[split].append(rows)

    def add_tags(self, texts: Sequence[str]) -> None:
        """All tags; call it once."""
        _TextColumn(self._file, "tags").append(texts)

    def finish(self, metadata: Mapping[str, object]) -> str:
        """Write what is held and the metadata, to which the tokens' sha256 is added; returns that sha256."""
        self._flush_tokens()
        self._flush_rows()
        checksum = self._digest.hexdigest()
        self._file["metadata"] = json.dumps({**metadata, "tokens_sha256": checksum})
        self._file.attrs["version"] = VERSION
        self._file.attrs["format"] = FORMAT
        return checksum

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                self._file.close()
        except (OSError, RuntimeError) as failure:  # h5py's words for a disk that is full
            raise OSError(str(failure)) from failure
        finally:
            if self._file:
                self._discard()

    def _discard(self) -> None:
        """Close without writing: a file that HDF5 cannot flush would crash the process at its end."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._file.id.get_vfd_handle())
        os.close(nowhere)
        with contextlib.suppress(RuntimeError):  # what cannot be resized: the file goes away in any case
            self._file.close()
