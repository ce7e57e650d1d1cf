"""What tells a bgzip file from other gzip files, and a whole one from one that was cut off.

Knows the first and the last bytes of such files (BGZF, SAM specification section 4.1); reading them is others' part.
"""

import os
from pathlib import Path

from data.errors import DataError

_START = b"\x1f\x8b\x08\x04"
_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def is_bgzip(path: Path) -> bool:
    """Whether a file begins as bgzip files do: gzip with an extra field."""
    with open(path, "rb") as file:
        return file.read(len(_START)) == _START


def refuse_cut_bgzip(path: Path) -> None:
    """Raise DataError for a bgzip file without its end marker: cut between two blocks it would read as complete."""
    if not path.is_file() or not is_bgzip(path):
        return
    with open(path, "rb") as file:
        file.seek(-min(len(_END), path.stat().st_size), os.SEEK_END)
        if file.read() != _END:
            raise DataError(f"{path}: the bgzip end marker is missing: the file is truncated").hint(
                "copy or download it again"
            )
