"""What a scan has computed so far, on disk: one file for every contig and strand, whole or not there.

A folder `PREFIX.partial` beside the outputs holds them, with the identity of the run that they belong to. The outputs
are made of them in the end, however large they are, in the memory of a block. Knows rows of float32; knows nothing of
models.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.atomic import replacing
from data.closing import Closing
from data.errors import DataError
from evo_cli.metadata import difference

_NUMBER = np.dtype("<f4")
_RUN = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows of numbers along a contig, one row after the other in a file."""

    path: Path
    rows: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether the file is there; it appears only when it is whole."""
        return self.path.is_file() and self.path.stat().st_size == self.rows * self.length * _NUMBER.itemsize

    def write(self, blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> None:
        """Write blocks [rows, bases], each with its first base, in any order; together they hold every base once.

        Blocks go where they belong in the file as they come, which also turns a strand that is read backwards.
        """
        with replacing(self.path) as temporary, temporary.open("r+b") as file:
            for start, block in blocks:
                for row, values in enumerate(block):
                    file.seek((row * self.length + start) * _NUMBER.itemsize)
                    file.write(values.astype(_NUMBER, copy=False).tobytes())

    def read(self, row: int, start: int, end: int) -> NDArray[np.float32]:
        """A row's numbers of bases start .. end - 1."""
        offset = (row * self.length + start) * _NUMBER.itemsize
        return np.fromfile(self.path, dtype=_NUMBER, count=end - start, offset=offset)


class PieceFolder(Closing):
    """The folder of the pieces, locked; use it as a context manager, and `remove` it when the outputs are there."""

    def __init__(self, path: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
        """Open the folder that an earlier run left, or make it.

        Raises:
            DataError: the folder is of a run with another identity, in use, no folder of pieces, or cannot be made.
        """
        self.path = path
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise DataError(f"{path}: is a file, where a folder must be").hint("give another prefix") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be made: {error.strerror or error}") from error
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._adopt(identity, overwrite=overwrite)
        except BlockingIOError as error:
            self.close()
            raise DataError(f"{path}: another run is writing it").hint("wait for it, or give another prefix") from error
        except BaseException:
            self.close()
            raise

    def _adopt(self, identity: dict[str, Any], *, overwrite: bool) -> None:
        note = self.path / _RUN
        others = [entry for entry in self.path.iterdir() if entry != note]
        if not note.exists() and any(not entry.name.startswith(f".{_RUN}.") for entry in others):
            raise DataError(f"{self.path}: holds other files than those of a scan").hint("give another prefix")
        if note.exists() and not overwrite:
            try:
                earlier = json.loads(note.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{note}: cannot be read: {error}").hint("--overwrite begins anew") from error
            if clause := difference(earlier, identity):
                raise DataError(f"{self.path}: was begun by another run: {clause}").hint(
                    "repeat the earlier command to go on with it, give another prefix, or begin anew with --overwrite"
                )
            return
        for entry in others:
            entry.unlink()
        with replacing(note) as temporary:
            temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    def piece(self, number: int, strand: str, *, rows: int, length: int) -> Piece:
        """The piece of a contig, by its number in the input, and of a strand."""
        return Piece(path=self.path / f"{number:07}.{strand}.f32", rows=rows, length=length)

    def remove(self) -> None:
        """Remove the folder: the outputs are there."""
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Let another run have the folder; what it holds stays."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
