"""Text line by line, numbered from 1, in the memory of a chunk and a line. Knows nothing of what the lines mean."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from data.source import Source

_CHUNK = 1 << 20


def numbered_lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """The lines of a source with their numbers, without their ends (LF or CRLF); the last may lack its end."""
    number = 1
    parts: list[bytes] = []
    for chunk in source.chunks(_CHUNK):
        first, *lines = chunk.split(b"\n")
        parts.append(first)
        if lines:
            lines, parts = [b"".join(parts), *lines[:-1]], [lines[-1]]
            for line in lines:
                yield number, line.removesuffix(b"\r")
                number += 1
    if rest := b"".join(parts):
        yield number, rest.removesuffix(b"\r")


def open_table(path: Path) -> TextIO:
    """Text of a table for `csv`, gzipped or not, without the mark that spreadsheets begin it with."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    if zipped:
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
