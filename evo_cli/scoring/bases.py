"""Log-probabilities of single bases beside a table of records: as TSV, or as HDF5.

    record    the records' names [N], text
    start     where each record's values begin in log_prob [N + 1], int64: value i of record r is start[r] + i
    log_prob  one value a scored base, float32, natural logarithm
    first_position (attribute)  the position, from 1, of a record's first value

Until it is whole, an HDF5 file is the bare values: appended to, they survive being killed.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from evo_cli.outputs.formats import has_suffix, read_rows

HDF5_SUFFIXES = (".h5", ".hdf5")
_BLOCK = 4096  # records
_VALUES = 1 << 20


def is_hdf5(path: Path) -> bool:
    """Whether a file is asked for as HDF5."""
    return has_suffix(path, HDF5_SUFFIXES)


def write_hdf5(table: Path, first_position: int, values: Path, target: Path) -> None:
    """Make an HDF5 file of the bare values and the table whose records they belong to."""
    rows = read_rows(table)
    next(rows)
    count = sum(1 for _ in rows)
    numbers = np.memmap(values, dtype="<f4", mode="r") if values.stat().st_size else np.empty(0, dtype="<f4")
    # the file that stands in for the target is locked already
    with h5py.File(target, "w", locking=False) as file:
        file.attrs["first_position"] = first_position
        names = file.create_dataset("record", (count,), dtype=h5py.string_dtype())
        starts = file.create_dataset("start", (count + 1,), dtype="<i8")
        log_probs = file.create_dataset("log_prob", (len(numbers),), dtype="<f4")
        for first in range(0, len(numbers), _VALUES):
            log_probs[first : first + _VALUES] = numbers[first : first + _VALUES]
        record, end = 0, 0
        for block in _records(table, first_position):
            ends = end + np.cumsum([length for _, length in block], dtype=np.int64)
            names[record : record + len(block)] = [name for name, _ in block]
            starts[record + 1 : record + 1 + len(block)] = ends
            record, end = record + len(block), int(ends[-1])


def _records(table: Path, first_position: int) -> Iterator[list[tuple[str, int]]]:
    """Names of records and how many values they have, some at a time."""
    rows = read_rows(table)
    next(rows)
    while block := list(islice(rows, _BLOCK)):
        yield [(name, 0 if score == "NA" else int(length) + 1 - first_position) for name, length, score, *_ in block]
