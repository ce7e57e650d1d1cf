"""Random access to a FASTA file by pyfaidx: which index is trusted, and where one is made.

An index that lies beside the file (.fai, and .gzi for bgzip) is used when it is newer than the file and every header
and line end is where it says. Otherwise one is made in the user's cache folder, so that nothing is ever written beside
the data; its name holds the file's path, size and time, so it cannot go stale. Knows nothing of what is fetched.
"""

import bisect
import hashlib
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyfaidx
from Bio.bgzf import make_virtual_offset

_BGZIP_SUFFIXES = (".gz", ".bgz")
_LONGEST_HEADER = 1 << 20
FAILURES = (
    pyfaidx.FastaIndexingError, struct.error, zlib.error, OSError, EOFError, StopIteration,
    ValueError, LookupError, ArithmeticError, RuntimeError, AssertionError,
)  # fmt: skip
"""What pyfaidx and its bgzip reader raise for a file or an index that is not what it should be."""


def open_indexed(path: Path, *, bgzip: bool) -> pyfaidx.Faidx | None:
    """A FASTA file opened for random access, or None when pyfaidx cannot index it.

    bgzip: whether the content is bgzip; pyfaidx goes by the name, so a file whose name says otherwise is not indexed.
    """
    if path.name.lower().endswith(_BGZIP_SUFFIXES) != bgzip:
        return None
    beside = path.with_name(path.name + ".fai"), path.with_name(path.name + ".gzi")
    if _newer(beside if bgzip else beside[:1], path):
        found = _open(path, *beside)
        if found is not None:
            return found
    for folder in _cache_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _cached(path, folder, bgzip)
        except OSError:  # not writable: the next one may be
            continue
    return None


def _newer(indexes: tuple[Path, ...], path: Path) -> bool:
    return all(index.is_file() and index.stat().st_mtime_ns >= path.stat().st_mtime_ns for index in indexes)


def _open(path: Path, fai: Path, gzi: Path) -> pyfaidx.Faidx | None:
    """The file with these indexes, which are made where they are missing; None when they do not fit it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = pyfaidx.Faidx(str(path), indexname=str(fai), gzi_indexname=str(gzi), as_raw=True, rebuild=False)
    except FAILURES:
        return None
    if _fits(made):
        return made
    made.close()
    return None


def _cache_folders() -> Iterator[Path]:
    yield Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "evo" / "fasta_index"
    yield Path(tempfile.gettempdir()) / f"evo_fasta_index_{os.getuid()}"


def _cached(path: Path, folder: Path, bgzip: bool) -> pyfaidx.Faidx | None:
    stat = path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    final = [folder / f"{name}{suffix}" for suffix in ((".fai", ".gzi") if bgzip else (".fai",))]
    if all(index.is_file() for index in final):
        found = _open(path, folder / f"{name}.fai", folder / f"{name}.gzi")
        if found is not None:
            return found
    with tempfile.TemporaryDirectory(dir=folder) as making:
        made = _open(path, Path(making) / f"{name}.fai", Path(making) / f"{name}.gzi")
        if made is not None:
            for index in final:
                os.replace(Path(making) / index.name, index)
    return made


def _fits(faidx: pyfaidx.Faidx) -> bool:
    """Whether the file is nothing but the index's records in their order, each header and line end where it must be."""
    end = 0
    try:
        for name, record in faidx.index.items():
            if not 0 < record.offset - end <= _LONGEST_HEADER:
                return False
            header = _raw(faidx, end, record.offset).strip()
            if len(header.splitlines()) != 1 or header[:1] != b">" or header[1:].split()[:1] != [name.encode()]:
                return False
            newline = record.lenb - record.lenc
            end = record.bend - newline if record.rlen else record.offset
            if record.rlen and not _raw(faidx, end - 1, end).strip():
                return False
            first_end = record.offset + record.lenc
            if record.rlen > record.lenc and _raw(faidx, first_end, first_end + newline).strip(b"\r\n"):
                return False
        return end > 0 and not _raw(faidx, end, end + _LONGEST_HEADER).strip()
    except FAILURES:
        return False


def _raw(faidx: pyfaidx.Faidx, start: int, end: int) -> bytes:
    """Bytes start .. end - 1 of the (decompressed) file."""
    if faidx._bgzf:
        block = faidx.gzi_index[bisect.bisect_right(faidx.gzi_index, start, key=lambda block: block.ustart) - 1]
        faidx.file.seek(make_virtual_offset(block.cstart, start - block.ustart))
    else:
        faidx.file.seek(start)
    data: bytes = faidx.file.read(end - start)
    return data
