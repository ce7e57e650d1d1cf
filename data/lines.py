"""Text line by line, numbered from 1, in the memory of a chunk and a line. Knows nothing of what the lines mean."""

from collections.abc import Iterator

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
