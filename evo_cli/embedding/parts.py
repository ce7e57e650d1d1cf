"""Blocks of vectors on the disk, each whole or to be done again, until all of them make the output.

A block is an array and an index, which is written when the array is on the disk. Knows nothing of models, nor of the
formats of the output.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data.atomic import replacing
from data.errors import DataError

Vectors = npt.NDArray[np.floating]
"""[rows, layers, width]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An interval of a record, 0-based and half-open, with its name and strand in BED."""

    start: int
    end: int
    name: str
    strand: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The rows of one record. length: its bases. places: what each row stands for, where that is an interval."""

    id: str
    length: int
    rows: int
    places: tuple[Place, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `asdict` made of an entry."""
        places = values["places"]
        return cls(**{**values, "places": places and tuple(Place(**place) for place in places)})


@contextmanager
def writing_block(
    folder: Path, number: int, digest: str, entries: Sequence[Entry], shape: tuple[int, int], dtype: str
) -> Iterator[Vectors]:
    """Yield the array of a block, zeros on the disk; when the context ends well, the block is done.

    Args:
        digest: of what the block was made of.
        shape: layers and width.

    Raises:
        OSError: the disk has no room.
    """
    path = folder / f"{number}.npy"
    rows = sum(entry.rows for entry in entries)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(rows, *shape))
    with path.open("r+b") as file:
        _reserve(file.fileno(), path.stat().st_size)
        yield array
        array.flush()
        os.fsync(file.fileno())
    index = {"digest": digest, "entries": [asdict(entry) for entry in entries]}
    with replacing(folder / f"{number}.json") as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")


def is_done(folder: Path, number: int, digest: str) -> bool:
    """Whether a block is there.

    Raises:
        DataError: it was made of something else.
    """
    path = folder / f"{number}.json"
    if not path.is_file():
        return False
    if _index(path)["digest"] != digest:
        raise DataError(f"{folder}: was begun by a run that read other records").hint("begin anew with --overwrite")
    return True


def count_blocks(folder: Path) -> int:
    """How many blocks are there."""
    return sum(path.suffix == ".json" and path.stem.isdecimal() for path in folder.iterdir())


def read_blocks(folder: Path, count: int) -> Iterator[tuple[Entry, Vectors]]:
    """The entries of the first so many blocks, and their rows, mapped from the disk."""
    for number in range(count):
        array = np.load(folder / f"{number}.npy", mmap_mode="r")
        first = 0
        for values in _index(folder / f"{number}.json")["entries"]:
            entry = Entry.from_dict(values)
            yield entry, array[first : first + entry.rows]
            first += entry.rows


def _index(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _reserve(file: int, size: int) -> None:
    """Take the disk's room for all of a file: a mapped one that finds none later would kill the process."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
            raise
