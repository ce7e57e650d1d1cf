"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed.

The temporary file is locked while its writer lives, so that a later run can tell what a killed one left behind.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError

_SUFFIX = ".partial"


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """The path of a temporary file that takes the target's place when the block ends well, and vanishes otherwise.

    The block writes the file at the path it is given, and closes it; it is flushed to the disk before the renaming.
    Files that killed runs left for the same target are removed first. Raises DataError when the folder cannot be
    written, or the target is a device or a pipe: for root, a file would take the place of `/dev/null`.
    """
    if target.exists() and not target.is_file():
        raise DataError(f"{target}: is no regular file, and no file may take its place").hint("give another name")
    _remove_leftovers(target)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Path(name)
        os.fchmod(descriptor, 0o666 & ~_umask())
        os.fsync(descriptor)
        os.replace(name, target)
        _sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if not (path.name.startswith(f".{target.name}.") and path.name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:  # held or removed by another run: leave it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
