"""Files and folders that are complete or not there: written under another name, synced, then moved into place."""

import ctypes
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sh2.errors import Sh2Error

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path` to write a file or fill a folder under; at the end it takes the place of `path`.

    An existing folder and the new one change places in one step where the system can (Linux), so that a kill at any
    moment leaves the one or the other.

    Raises:
        Sh2Error: the disk is full, the place cannot be written to, or a device or a pipe is there.
    """
    path = path.absolute()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Sh2Error(f"{path} is no regular file, and nothing may take its place").hint("give another name")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            yield partial
            for folder in (partial, *(inner for inner in partial.rglob("*") if inner.is_dir())):
                _sync(folder)
            _move(partial, path)
            _sync(path.parent)
    finally:
        _remove(partial)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what the system refuses.

    Raises:
        Sh2Error: the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise Sh2Error(f"cannot write {path}: {error.strerror or error}") from error


def _move(partial: Path, path: Path) -> None:
    """Put `partial` where `path` is; what was there is removed, or changes places with it."""
    if not path.is_dir() or not any(path.iterdir()):
        os.replace(partial, path)  # over nothing, a file or an empty folder this is one step everywhere
    elif not _exchange(partial, path):
        previous = path.with_name(f".{path.name}.previous-{os.getpid()}")
        os.replace(path, previous)
        os.replace(partial, path)
        _remove(previous)


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return result == 0


def _remove_leftovers(path: Path) -> None:
    """Undo or remove what processes that are gone left half-way beside `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = re.fullmatch(r"(partial|previous)-(\d+)", leftover.name.removeprefix(f".{path.name}."))
        if not match or _is_running(int(match[2])):
            continue
        if match[1] == "previous" and not path.exists():
            os.replace(leftover, path)
        else:
            _remove(leftover)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another process may write into it still; a later call removes it
    elif os.path.lexists(path):
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
