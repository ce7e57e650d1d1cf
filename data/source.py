"""A file of sequences as a stream of bytes: opened from a path or standard input, gunzipped when its content is gzip.

Knows compression, checksums and byte-order marks; knows nothing of what the bytes mean.
"""

import errno
import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data.closing import Closing
from data.errors import DataError

CHUNK = 8 << 20
"""Bytes read at a time."""
STDIN = Path("-")
"""The path that stands for standard input."""
_HEAD = 4096
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"

_UNREADABLE = {
    b"BZh": ("bzip2", "decompress it first: `bzip2 -dc FILE | evo prepare - ...`"),
    b"\xfd7zXZ\x00": ("xz", "decompress it first: `xz -dc FILE | evo prepare - ...`"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "decompress it first: `zstd -dc FILE | evo prepare - ...`"),
    b"PK\x03\x04": ("a zip archive", "unpack it first with `unzip`"),
    b"PK\x05\x06": ("an empty zip archive", "unpack it first with `unzip`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it first"),
    _GZIP: ("gzip inside gzip", "decompress it once first: `gzip -dc FILE | evo prepare - ...`"),
    b"\xff\xfe": ("UTF-16 text", "convert it first: `iconv -f UTF-16 -t ASCII FILE`"),
    b"\xfe\xff": ("UTF-16 text", "convert it first: `iconv -f UTF-16 -t ASCII FILE`"),
    b"\x89HDF": ("an HDF5 file", "a token store needs no preparation; give it to `evo train` directly"),
    b"BAM\x01": ("BAM", "convert it first: `samtools fasta FILE`"),
    b"CRAM": ("CRAM", "convert it first: `samtools fasta FILE`"),
    b"\x43\x27\x41\x1a": ("2bit", "convert it first with `twoBitToFa`"),
    b"\x1a\x41\x27\x43": ("2bit", "convert it first with `twoBitToFa`"),
}


class _Tap(io.RawIOBase):
    """A raw stream that counts, and when asked hashes, what is read through it."""

    def __init__(self, stream: BinaryIO, checksum: bool) -> None:
        self._stream = stream
        self._digest = hashlib.sha256() if checksum else None
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # collections.abc.Buffer comes with Python 3.12
        view = memoryview(buffer).cast("B")
        count: int | None = self._stream.readinto(view)  # type: ignore[attr-defined]
        if count is None:
            raise BlockingIOError(errno.EAGAIN, "the stream does not wait for its data")
        self.count += count
        if self._digest is not None:
            self._digest.update(view[:count])
        return count

    def hexdigest(self) -> str:
        return self._digest.hexdigest() if self._digest is not None else ""


def _standard_input() -> BinaryIO:
    """Standard input without its buffer, which reads on in C until it is full: a Ctrl-C between two of its reads
    would wait for more data to come."""
    if sys.stdin is None:
        raise DataError("standard input: is closed").hint("give the name of a file instead of `-`")
    stream = sys.stdin.buffer
    raw: BinaryIO = getattr(stream, "raw", stream)
    return raw


class Source(Closing):
    """An opened file of sequences. Use it as a context manager.

    name: for messages; head: the first bytes, decompressed, without a byte-order mark. Raises DataError when the path
    cannot be read or its first bytes are those of a format that is no text.
    """

    def __init__(self, path: str | os.PathLike[str], *, checksum: bool = False) -> None:
        self.path = Path(path)
        self.name = "standard input" if self.path == STDIN else str(self.path)
        self._file = _standard_input() if self.path == STDIN else self._open()
        self._tap = _Tap(self._file, checksum)
        try:
            buffered = io.BufferedReader(self._tap, buffer_size=1 << 20)
            self.compressed = self._guard(buffered.peek, 2)[:2] == _GZIP
            self._stream: io.BufferedIOBase = (
                gzip.GzipFile(fileobj=buffered, mode="rb") if self.compressed else buffered
            )
            self.head = self._guard(self._stream.read, _HEAD).removeprefix(_BOM)
            self._refuse_other_formats()
        except BaseException:
            self.close()
            raise

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> DataError:
        if isinstance(error, IsADirectoryError):
            return DataError(f"{self.name}: is a folder, not a file of sequences")
        return DataError(f"{self.name}: cannot be read: {error.strerror or error}")

    def _refuse_other_formats(self) -> None:
        for magic, (kind, advice) in _UNREADABLE.items():
            if self.head.startswith(magic):
                raise DataError(f"{self.name}: is {kind}, not FASTA, GenBank or EMBL text").hint(advice)

    def _guard(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except EOFError as error:
            raise DataError(f"{self.name}: the gzip data end before they should: the file is truncated").hint(
                "copy or download it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.name}: the gzip data are damaged: {error}").hint(
                "copy or download it again"
            ) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The decompressed bytes, once, in chunks of at most `size`. Raises DataError when the gzip data are bad."""
        for start in range(0, len(self.head), size):
            yield self.head[start : start + size]
        while chunk := self._guard(self._stream.read, size):
            yield chunk

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file so far, as they lie on disk."""
        return self._tap.count

    @property
    def sha256(self) -> str:
        """sha256 of the bytes read so far (of the file, once `chunks` has ended); empty without `checksum`."""
        return self._tap.hexdigest()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self.path != STDIN:
            self._file.close()
