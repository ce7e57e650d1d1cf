"""Contigs to tracks: sequences from the data room, predictions from the model room, strands and files here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.pieces import Header
from data.reader import scan as scan_file
from data.sequence import COMPLEMENT, to_upper_dna
from data.source import Source
from data.tracks import ReadTrack
from evo_cli.scanning.pieces import Piece

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas
    from sh2.model import StripedHyena2

ROWS = ("logprob", "entropy", "A", "C", "G", "T")
"""Tracks, in the order of `sh2.reading.scan.Signal`."""
TRACKS = {"logprob": ROWS[:1], "entropy": ROWS[1:2], "acgt": ROWS[2:]}
"""What can be asked for, and the tracks that it gives."""
# where on the other strand each row comes from: the probability of A here is that of T there
_OTHER_STRAND = (0, 1, 5, 4, 3, 2)


class Strand(StrEnum):
    """The strand that a track was computed on."""

    FORWARD = "forward"
    REVERSE = "reverse"
    MEAN = "mean"  # of both

    @property
    def sign(self) -> str:
        """As BED has it."""
        return {Strand.FORWARD: "+", Strand.REVERSE: "-", Strand.MEAN: "."}[self]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contig:
    """A contig of the input. number: its place there; lower: its bases in lower case."""

    number: int
    name: str
    length: int
    lower: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """How contigs are scanned."""

    tracks: tuple[str, ...]  # of `ROWS`
    context: int | None = None  # bases that a base may look back on; None is all of the contig
    prepend_eod: bool = False
    max_tokens: int = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanJob:
    """One contig and strand: what a replica does at a time."""

    sequence: bytes
    strand: Strand
    piece: Piece
    options: ScanOptions


def parse_tracks(text: str) -> tuple[str, ...]:
    """The tracks that a list such as `logprob,acgt` gives, in the order of `ROWS`. Raises DataError."""
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in TRACKS:
            raise DataError(f"there is no track {name!r}").hint(f"the tracks are {', '.join(TRACKS)}")
    return tuple(track for track in ROWS if any(track in TRACKS[name] for name in wanted))


def read_contigs(path: Path) -> list[Contig]:
    """Read a file once, for the names and lengths of its contigs; those without a base are left out.

    Raises:
        DataError: the file cannot be read or is not DNA, a contig has no name, or two have the same one.
    """
    contigs: list[Contig] = []
    names: set[str] = set()
    with Source(path) as source:
        number, name, length, lower = -1, "", 0, 0
        for event in scan_file(source):
            if not isinstance(event, Header):
                length, lower = length + len(event.bases), lower + event.lower
                continue
            if length:
                contigs.append(Contig(number=number, name=name, length=length, lower=lower))
            number, name, length, lower = number + 1, event.name, 0, 0
            if not name:
                raise DataError(f"{source.name}: line {event.line}: a contig without a name has no place in a track")
            if name in names:
                raise DataError(f"{source.name}: line {event.line}: a second contig is named {name!r}").hint(
                    "the names of a genome's contigs (the first word after '>') must differ"
                )
            names.add(name)
        if length:
            contigs.append(Contig(number=number, name=name, length=length, lower=lower))
    return contigs


def _sequences(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and upper-cased sequences of a file's contigs, a single copy of each: they may have 200 million bases."""
    with Source(path) as source:
        name, parts = "", list[bytes]()
        for event in scan_file(source):
            if not isinstance(event, Header):
                parts.append(to_upper_dna(event.bases))
                continue
            if parts:
                text = b"".join(parts)
                parts.clear()
                yield name, text
            name = event.name
        if parts:
            yield name, b"".join(parts)


class Scan:
    """The scan of a file: computes what is missing of its pieces in a folder, and then reads tracks out of them."""

    def __init__(
        self,
        path: Path,
        contigs: Sequence[Contig],
        strands: Sequence[Strand],
        options: ScanOptions,
        folder: Path,
    ) -> None:
        self._path, self._contigs, self._options = path, contigs, options
        self._by_name = {contig.name: contig for contig in contigs}
        self._pieces = {
            (contig.name, strand): Piece(
                path=folder / f"{contig.number:07}.{strand}.f32", rows=len(options.tracks), length=contig.length
            )
            for contig in contigs
            for strand in strands
        }

    @property
    def pieces(self) -> list[Piece]:
        """One piece for every contig and strand."""
        return list(self._pieces.values())

    def compute(self, replicas: "Replicas", progress: Callable[[int], None]) -> None:
        """Compute the pieces that are missing; `progress` is called with the bases done, again and again.

        Raises:
            DataError: the file changed since its contigs were read.
        """
        for _ in replicas.map(run_job, self._jobs(), progress):
            pass

    def _jobs(self) -> Iterator[ScanJob]:
        missing = {key for key, piece in self._pieces.items() if not piece.is_whole}
        for name, text in _sequences(self._path) if missing else ():
            contig = self._by_name.get(name)
            if contig is None or contig.length != len(text):
                raise DataError(f"{self._path}: changed while it was read: contig {name!r} is another")
            for strand in (Strand.FORWARD, Strand.REVERSE):
                if (name, strand) in missing:
                    yield ScanJob(sequence=text, strand=strand, piece=self._pieces[name, strand], options=self._options)

    def reader(self, track: str, strand: Strand) -> ReadTrack:
        """What reads a track of a strand from the pieces; the mean is absent where one strand has no value."""
        return partial(self._read, self._options.tracks.index(track), strand)

    def _read(self, row: int, strand: Strand, contig: str, start: int, end: int) -> NDArray[np.float32]:
        if strand is not Strand.MEAN:
            return self._pieces[contig, strand].read(row, start, end)
        forward, reverse = (self._pieces[contig, one].read(row, start, end) for one in (Strand.FORWARD, Strand.REVERSE))
        return (forward + reverse) / np.float32(2)


def run_job(model: "StripedHyena2", job: ScanJob, progress: Callable[[int], None]) -> None:
    """Scan one contig on one strand, and write the piece."""
    from sh2.reading.scan import scan

    forward, options = job.strand is Strand.FORWARD, job.options
    blocks = scan(
        model,
        job.sequence if forward else _other_strand(job.sequence),
        context=options.context,
        prepend_eod=options.prepend_eod,
        max_tokens=options.max_tokens,
        progress=progress,
    )
    whole = blocks if options.prepend_eod else _with_first(blocks, progress)
    oriented = whole if forward else _turned(whole, len(job.sequence))
    rows = [ROWS.index(track) for track in options.tracks]
    job.piece.write((start, block[rows]) for start, block in oriented)


def _other_strand(sequence: bytes) -> NDArray[np.uint8]:
    """The reverse complement, seen backwards instead of copied once more."""
    return np.frombuffer(sequence.translate(COMPLEMENT), dtype=np.uint8)[::-1]


def _with_first(
    blocks: Iterable[tuple[int, NDArray[np.float32]]], progress: Callable[[int], None]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The blocks, and before them the first base, of which nothing is predicted."""
    progress(1)
    yield 0, np.full((len(ROWS), 1), np.nan, dtype=np.float32)
    yield from blocks


def _turned(
    blocks: Iterable[tuple[int, NDArray[np.float32]]], length: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks along the reverse complement as blocks along the contig."""
    for start, block in blocks:
        yield length - start - block.shape[1], block[_OTHER_STRAND, ::-1]
