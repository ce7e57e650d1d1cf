"""The token store, read: one HDF5 file with the bases of many records, an index of the records and the splits.

Layout of the file (format `evo-token-store`, version 1; data/store_writer.py writes it):

    tokens                uint8 [T]  the bases of every record, case kept, U as T, one EOD after each record
    records/offset        uint64 [R] first token of the record
    records/length        uint64 [R] its bases (the EOD not counted)
    records/hash          uint8 [R, 16] blake2b of the upper-cased bases
    records/source        uint32 [R] index into metadata["sources"]
    records/tag           int64 [R]  index of its tag, -1 for none
    records/name*, records/description*   UTF-8 text, see below
    tags*                 ASCII text, every distinct tag once
    segments/{train,valid,test}   SEGMENT [S], ordered by start
    metadata              JSON text: sources (path, size, sha256), options, counts, tokens_sha256
    attributes            format, version

Text columns are two datasets, X_bytes uint8 [sum of lengths] and X_end uint64 [R], so a million names cost no objects.
This module knows nothing of FASTA and nothing of windows.
"""

import hashlib
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from data.closing import Closing
from data.errors import DataError

FORMAT = "evo-token-store"
VERSION = 1
_METADATA = {"sources", "options", "counts", "warnings", "tokens_sha256"}
_QUOTES = "\"'"

SEGMENT = np.dtype([("record", "<i8"), ("start", "<i8"), ("end", "<i8"), ("tag_start", "<i8"), ("tag_end", "<i8")])


class Split(StrEnum):
    """What a stretch of a record is for."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


class TextColumn:
    """A column of byte strings, read on demand: `column[i]`, `len(column)`, `list(column)`."""

    def __init__(self, group: h5py.Group, name: str) -> None:
        self._bytes = group[f"{name}_bytes"]
        self._end = group[f"{name}_end"]

    def __len__(self) -> int:
        return int(self._end.shape[0])

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._end[index - 1]) if index else 0
        return bytes(self._bytes[start : int(self._end[index])]).decode("utf-8")


class Records:
    """The index of the records; each column is read from the file when asked for.

    offsets, lengths: int64 [R], in tokens and bases; sources, tags: int64 [R]; hashes: uint8 [R, 16].
    """

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        self.names = TextColumn(group, "name")
        self.descriptions = TextColumn(group, "description")

    def __len__(self) -> int:
        return int(self._group["length"].shape[0])

    def _column(self, name: str) -> npt.NDArray[np.int64]:
        return np.asarray(self._group[name][:], dtype=np.int64)

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """First token of every record."""
        return self._column("offset")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bases of every record."""
        return self._column("length")

    @property
    def sources(self) -> npt.NDArray[np.int64]:
        """Index of every record's file in `metadata["sources"]`."""
        return self._column("source")

    @property
    def tags(self) -> npt.NDArray[np.int64]:
        """Index of every record's tag, -1 for none."""
        return self._column("tag")

    @property
    def hashes(self) -> npt.NDArray[np.uint8]:
        """blake2b (16 bytes) of every record's upper-cased bases."""
        return np.asarray(self._group["hash"][:], dtype=np.uint8)


class TokenStore(Closing):
    """A token store opened for reading; use it as a context manager or call `close`.

    tokens: h5py dataset, uint8 [T]; tags: uint8 array, all distinct tags joined (`tag_start` and `tag_end` of a
    segment index it; equal numbers mean no tag); metadata: dict; records: Records.
    Raises DataError when the path is not a token store that this version reads.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self.metadata: dict[str, Any] = _read_metadata(self._file, self.path)
            self.tokens: h5py.Dataset = self._file["tokens"]
            self.records = Records(self._file["records"])
            self.tags: npt.NDArray[np.uint8] = self._file["tags_bytes"][:]
        except KeyError as error:
            self._file.close()
            raise _incomplete(self.path, error) from error
        except BaseException:
            self._file.close()
            raise

    def segments(self, split: Split | str) -> npt.NDArray[np.void]:
        """Segments of a split, SEGMENT [S], ordered by start: maximal runs inside one record that belong to it.

        Fields: record; start, end (absolute, half-open, into tokens); tag_start, tag_end (half-open, into tags).
        """
        try:
            table: npt.NDArray[np.void] = self._file["segments"][Split(split).value][:]
        except KeyError as error:
            raise _incomplete(self.path, error) from error
        return table

    def read(self, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Tokens start..end (absolute, half-open) as uint8 [end - start]. Raises DataError outside the store."""
        if not 0 <= start <= end <= len(self.tokens):
            raise DataError(f"{self.path}: tokens {start}..{end} are not within 0..{len(self.tokens)}")
        tokens: npt.NDArray[np.uint8] = self.tokens[start:end]
        return tokens

    @property
    def checksum(self) -> str:
        """sha256 of all tokens, as recorded when the store was written."""
        return str(self.metadata["tokens_sha256"])

    def load(self) -> npt.NDArray[np.uint8]:
        """All tokens, uint8 [T]. Raises DataError when their sha256 is not the recorded one."""
        tokens = self.read(0, len(self.tokens))
        found = hashlib.sha256(tokens.data).hexdigest()
        if found != self.checksum:
            raise DataError(f"{self.path}: damaged: the tokens' sha256 is {found}, recorded is {self.checksum}").hint(
                "prepare it again with `evo prepare --force`"
            )
        return tokens

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a token store of any version (it may still be one that `TokenStore` refuses)."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder, not a' if path.is_dir() else 'no such'} token store").hint(
            "make one with `evo prepare INPUT... -o STORE.h5`"
        )
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path}: not a token store: {error}").hint(
            "make one with `evo prepare INPUT... -o STORE.h5`"
        ) from error


def _read_metadata(file: h5py.File, path: Path) -> dict[str, Any]:
    if file.attrs.get("format") != FORMAT:
        raise DataError(f"{path}: an HDF5 file, but not a token store").hint(
            "make one with `evo prepare INPUT... -o STORE.h5`"
        )
    version = int(file.attrs["version"])
    if version != VERSION:
        raise DataError(f"{path}: token store of version {version}; this evo reads version {VERSION}").hint(
            "prepare it again with `evo prepare`"
        )
    try:
        metadata: dict[str, Any] = json.loads(file["metadata"][()])
    except ValueError as error:
        raise _incomplete(path, error) from error
    if missing := _METADATA - metadata.keys():
        raise _incomplete(path, KeyError(f"metadata have no {min(missing)!r}"))
    return metadata


def _incomplete(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: a damaged token store: {str(error).strip(_QUOTES)}").hint(
        "prepare it again with `evo prepare --force`"
    )
