"""Where rows go: stdout, or a file that appears only when it is whole."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from data.atomic import replacing
from data.errors import DataError

_STDOUT = Path("-")


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Yield a text stream: stdout, or a temporary file that takes the name `path` when the block ends well.

    What is no regular file (`/dev/stdout`, a named pipe) is written to as it is: a file must never take its place.

    Raises:
        DataError: stdout is closed, or the file cannot be written.
    """
    if path is None or path == _STDOUT:
        if sys.stdout is None:
            raise DataError("standard output is closed").hint("give a file with `-o`")
        yield sys.stdout
        sys.stdout.flush()
    elif is_stream(path):
        with path.open("w", encoding="utf-8") as stream:
            yield stream
    else:
        # through a link, to the file that it names
        with replacing(path.resolve()) as temporary, temporary.open("w", encoding="utf-8") as stream:
            yield stream


def is_stream(path: Path) -> bool:
    """Whether a path is `-`, a device or a pipe: what is written there cannot be taken back or gone on with."""
    return path == _STDOUT or (path.exists() and not (path.is_file() or path.is_dir()))


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse outputs that cannot be written, before any work is done for them.

    Raises:
        DataError: an output is a folder, in no folder, an input too, or given twice.
    """
    taken = {os.path.realpath(path): "an input" for path in inputs if path is not None and os.path.isfile(path)}
    for path in outputs:
        if path is None or is_stream(path):
            continue
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not a file to write").hint("name a file in it")
        if not path.parent.is_dir():
            raise DataError(f"{path}: cannot be written: there is no folder {path.parent}").hint(
                "make the folder first"
            )
        if not os.access(path.parent, os.W_OK):
            raise DataError(f"{path}: cannot be written: the folder {path.parent} is not writable")
        if other := taken.get(os.path.realpath(path)):
            raise DataError(f"{path}: is an output and {other} too").hint("give the output another name")
        taken[os.path.realpath(path)] = "another output"
