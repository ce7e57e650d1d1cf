"""Tracks: a number for every base of every contig, as files that genome browsers read.

Knows bedGraph (plain or bgzip) and bigWig; values come from a function, block by block, so that no contig is ever held
whole. A base without a value (NaN) is absent from the file. Knows nothing of what the numbers mean.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pysam
from numpy.typing import NDArray

from data.atomic import replacing
from data.errors import DataError

Values = NDArray[np.float32]
ReadTrack = Callable[[str, int, int], Values]
"""Values of bases start .. end - 1 (0-based) of a contig."""
BLOCK = 1 << 18
"""Bases that are read and written at once."""
_BIG_WIG_BYTES = 6
"""Bytes of a file for every base, at most: 4 and the levels of zoom."""
_MAKE_ROOM = "make room on the disk, or write to another"


class TrackFormat(StrEnum):
    """How a track is written."""

    BEDGRAPH = "bedgraph"
    BEDGRAPH_GZ = "bedgraph.gz"
    BIGWIG = "bigwig"

    @property
    def suffix(self) -> str:
        """What a file's name ends with, with the dot."""
        return ".bw" if self is TrackFormat.BIGWIG else f".{self}"


def check_format(form: TrackFormat) -> None:
    """Raise DataError when a format needs a package that is not installed."""
    if form is TrackFormat.BIGWIG:
        _big_wig()


def write_track(
    path: Path,
    contigs: Mapping[str, int],
    read: ReadTrack,
    form: TrackFormat,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a track, atomically.

    bedGraph has a line a base, `contig start end value` with 7 digits, contigs in the order given, and no track line,
    which few tools but UCSC's take; bgzip bedGraph can be indexed with `tabix -p bed`. bigWig has the float32 values
    themselves, and its contigs sorted by name, as its index needs them; pyBigWig makes its levels of zoom in memory, of
    about 15 bytes for every base with a value.

    Args:
        contigs: length in bp of every contig.
        read: called for blocks of every contig, from left to right.
        progress: called with the number of bases written.

    Raises:
        DataError: the file cannot be written, or bigWig is asked for and pyBigWig is not installed.
    """
    with replacing(path) as temporary:
        if form is TrackFormat.BIGWIG:
            _write_big_wig(temporary, path, contigs, read, progress)
        elif form is TrackFormat.BEDGRAPH_GZ:
            _write_bgzip(temporary, path, contigs, read, progress)
        else:
            with temporary.open("wb") as stream:
                _write_bed_graph(stream.write, contigs, read, progress)


def blocks(length: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of the blocks of a contig."""
    for start in range(0, length, BLOCK):
        yield start, min(start + BLOCK, length)


def _write_bgzip(
    temporary: Path, path: Path, contigs: Mapping[str, int], read: ReadTrack, progress: Callable[[int], None]
) -> None:
    try:
        with pysam.BGZFile(str(temporary), "wb", None) as stream:
            _write_bed_graph(stream.write, contigs, read, progress)
    except OSError as error:
        if error.errno is not None:
            raise
        # pysam does not say what the system said
        raise DataError(f"{path}: cannot be written: {error}").hint(_MAKE_ROOM) from error


def _write_bed_graph(
    write: Callable[[bytes], object], contigs: Mapping[str, int], read: ReadTrack, progress: Callable[[int], None]
) -> None:
    for contig, length in contigs.items():
        # the name stands outside the format, for it may hold a %
        lead = f"{contig}\t"
        for start, end in blocks(length):
            values = read(contig, start, end)
            places = np.flatnonzero(~np.isnan(values))
            rows = zip((places + start).tolist(), (places + start + 1).tolist(), values[places].tolist(), strict=True)
            write("".join([f"{lead}{first}\t{last}\t{value:.7g}\n" for first, last, value in rows]).encode())
            progress(end - start)


def _write_big_wig(
    temporary: Path, path: Path, contigs: Mapping[str, int], read: ReadTrack, progress: Callable[[int], None]
) -> None:
    ordered = sorted(contigs.items(), key=lambda item: item[0].encode())
    needed, free = _BIG_WIG_BYTES * sum(contigs.values()), shutil.disk_usage(path.parent).free
    if free < needed:  # on a full disk pyBigWig would not come back
        raise DataError(f"{path}: may take {needed:,} bytes, and the disk has {free:,}").hint(_MAKE_ROOM)
    file, covered = _big_wig().open(str(temporary), "w"), 0
    try:
        file.addHeader(ordered)
        for contig, length in ordered:
            for start, end in blocks(length):
                values = read(contig, start, end)
                for first, last in runs(~np.isnan(values)):
                    file.addEntries(contig, start + first, values=values[first:last], span=1, step=1)
                    covered += last - first
                progress(end - start)
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be written as bigWig: {error}") from error
    finally:
        file.close()
    _check_big_wig(temporary, path, covered)


def _check_big_wig(temporary: Path, path: Path, covered: int) -> None:
    """Read back how many bases a file holds: pyBigWig does not tell of every error."""
    try:
        with _big_wig().open(str(temporary)) as file:
            held = file.header()["nBasesCovered"]
    except RuntimeError:
        held = 0
    if held != covered:
        raise DataError(f"{path}: was not written whole: it holds {held} of {covered} bases").hint(_MAKE_ROOM)


def runs(inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Starts and ends (half-open) of the stretches that are True."""
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _big_wig() -> Any:
    try:
        import pyBigWig
    except ImportError as error:
        raise DataError("bigWig files need the package pyBigWig, which is not installed").hint(
            'pip install "evo-sh2[tracks]", or write bedGraph'
        ) from error
    return pyBigWig
