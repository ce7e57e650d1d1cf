"""The files that a command's inputs stand for: files, folders searched for known suffixes, glob patterns, `-`.

Knows paths; opens nothing.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.errors import DataError
from data.reader import COMPRESSED_SUFFIXES, SUFFIXES, has_known_suffix
from data.source import STDIN


def find_inputs(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(files, repeats): the files in the order given, folders and patterns sorted; a file met again is a repeat.

    Hidden files and folders within a folder are passed over. Raises DataError for a path that does not exist, a
    pattern that matches nothing and a folder without a file of sequences.
    """
    files: list[Path] = []
    repeats: list[Path] = []
    seen: set[str] = set()
    for path in inputs:
        for file in _expand(path):
            key = "-" if file == STDIN else os.path.realpath(file)
            (repeats if key in seen else files).append(file)
            seen.add(key)
    if not files:
        raise DataError("no input file").hint("name at least one FASTA or GenBank file, or `-` for standard input")
    return files, repeats


def _expand(path: Path) -> Iterator[Path]:
    if path == STDIN or (path.exists() and not path.is_dir()):
        yield path
    elif path.is_dir():
        yield from _search(path)
    elif glob.has_magic(str(path)):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(f"{path}: no file matches this pattern")
        for match in matches:
            yield from _expand(Path(match))
    else:
        raise DataError(f"{path}: no such file or folder")


def _search(folder: Path) -> Iterator[Path]:
    found = False
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and has_known_suffix(name):
                found = True
                yield Path(parent, name)
    if not found:
        raise DataError(f"{folder}: no file of sequences in this folder").hint(
            f"a folder is searched for {' '.join(sorted(SUFFIXES))}, also with {' '.join(sorted(COMPRESSED_SUFFIXES))}"
            " behind; name files with other endings one by one"
        )
