"""Errors as lines on stderr: what was wrong, and the way out. Knows no command.

Everything here but a user's mistake, a full disk or too little memory is a bug, and keeps its traceback.
"""

import errno
import os
import sys

import typer

from data.errors import DataError
from sh2.errors import Sh2Error

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SMALLER = (
    "ask for less at once: `--batch-size` or `--length` of train, `--max-tokens` or `--window` of score, "
    "`--length` of generate; `evo models` shows what a model takes"
)


def describe(error: Exception) -> tuple[str, list[str]] | None:
    """One sentence and the hints for an error that the user can mend; None for a bug."""
    if isinstance(error, DataError | Sh2Error):
        return str(error), list(getattr(error, "__notes__", []))
    if isinstance(error, OSError):
        return _of_the_system(error)
    if _is_lack_of_memory(error):
        reason = str(error).strip().split("\n")[0]
        return f"out of memory{f': {reason}' if reason else ''}", [_SMALLER]
    return None


def report(sentence: str, hints: list[str]) -> None:
    """Write an error on stderr."""
    typer.secho(f"error: {sentence}", fg="red", err=True)
    for hint in hints:
        typer.secho(f"hint: {hint}", fg="cyan", err=True)


def drop_stdout() -> None:
    """Let what is still to be written to stdout vanish: its reader is gone, or its disk is full."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_the_system(error: OSError) -> tuple[str, list[str]] | None:
    reason = (error.strerror or "cannot be opened").lower()
    if error.filename is not None:
        return f"{error.filename}: {reason}", []
    if error.errno in _NO_ROOM:
        return f"cannot write the output: {reason}", ["make room, or write to another disk"]
    return None


def _is_lack_of_memory(error: Exception) -> bool:
    # torch has its own class on a GPU and none on a CPU; it is not imported for this
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
