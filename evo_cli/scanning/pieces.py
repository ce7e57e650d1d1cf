"""What a scan has computed so far, on disk: one file for every contig and strand, whole or not there.

The outputs are made of these pieces in the end, however large they are, in the memory of a block. Knows rows of float32
along a contig; knows nothing of models.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NUMBER = np.dtype("<f4")


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

        Blocks go where they belong in the file as they come, which also turns a strand that is read backwards. The
        folder is this run's alone, so what a killed one left is written over (looking for it among the pieces of
        100,000 contigs, for each, would take hours).
        """
        temporary = self.path.with_suffix(".partial")
        with temporary.open("wb") as file:
            for start, block in blocks:
                for row, values in enumerate(block):
                    file.seek((row * self.length + start) * _NUMBER.itemsize)
                    file.write(values.astype(_NUMBER, copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def read(self, row: int, start: int, end: int) -> NDArray[np.float32]:
        """A row's numbers of bases start .. end - 1."""
        offset = (row * self.length + start) * _NUMBER.itemsize
        return np.fromfile(self.path, dtype=_NUMBER, count=end - start, offset=offset)
