"""Records to vectors, block by block: strands, intervals, and where the vectors of a block go.

A block is some records, the same ones whatever the device, so that a block that is on the disk need not be done again.
Knows nothing of the formats of the output.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data.pieces import Record
from data.sequence import reverse_complement, to_upper_dna
from evo_cli.embedding.parts import Entry, Place, writing_block
from sh2.errors import Sh2Error
from sh2.reading.sites import Pooling

if TYPE_CHECKING:
    from data.bed import BedInterval
    from sh2.model import StripedHyena2
    from sh2.reading.embedding import Part, Row

_BLOCK_BASES = 1 << 19
_BLOCK_RECORDS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedOptions:
    """How records are embedded.

    sites: names and modules, of `sh2.reading.sites.find_sites`. concat: put the strands side by side, not averaged.
    """

    sites: Mapping[str, str]
    pooling: Pooling
    both_strands: bool = False
    concat: bool = False
    dtype: str = "float32"
    max_tokens: int = 65_536

    @property
    def block_dtype(self) -> str:
        """The dtype in which vectors wait on the disk: a mean of two is rounded when it is whole."""
        return "float32" if self.both_strands and not self.concat else self.dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A record that has vectors: its letters as the model reads them, and its intervals, if they are what is wanted."""

    id: str
    text: bytes
    places: tuple[Place, ...] | None

    def entry(self, pooling: Pooling) -> Entry:
        """What the target's rows will be."""
        whole = len(self.text) if pooling is Pooling.PER_BASE else 1
        rows = whole if self.places is None else len(self.places)
        return Entry(id=self.id, length=len(self.text), rows=rows, places=self.places)

    def row(self, pooling: Pooling, *, reverse: bool) -> "Row":
        """What the model is to read of one strand, and where: positions count from that strand's 5' end."""
        from sh2.reading.embedding import Row, pooled_spans

        length = len(self.text)
        bounds = [(0, length)] if self.places is None else [(place.start, place.end) for place in self.places]
        spans_S2 = np.array(bounds, dtype=np.int64)
        if reverse:
            spans_S2 = length - spans_S2[:, ::-1]
        text = reverse_complement(self.text) if reverse else self.text
        return Row(ids=np.frombuffer(text, np.uint8), spans_S2=pooled_spans(spans_S2, pooling))


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some targets in the order of the input, and what tells them from others."""

    number: int
    digest: str
    targets: tuple[Target, ...]

    @property
    def bases(self) -> int:
        """Of all targets."""
        return sum(len(target.text) for target in self.targets)


@dataclass(kw_only=True, slots=True)
class Tally:
    """What the input was, counted while it is read."""

    records: int = 0
    bases: int = 0
    lower: int = 0  # records with soft-masked bases
    empty: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)  # intervals that end behind their record
    contigs: set[str] = field(default_factory=set)  # with intervals


def blocks(
    records: Iterable[Record],
    intervals: "Mapping[str, Sequence[BedInterval]] | None",
    tally: Tally,
    *,
    keep_case: bool = False,
) -> Iterator[Block]:
    """Cut records into blocks; what has no vectors is left out, and counted.

    Args:
        intervals: by the id of the record they lie on; None to embed records as a whole.
    """
    number, size = 0, 0
    targets: list[Target] = []
    for record in records:
        target = _target(record, intervals, tally, keep_case=keep_case)
        if target is None:
            continue
        targets.append(target)
        size += len(target.text)
        if size >= _BLOCK_BASES or len(targets) >= _BLOCK_RECORDS:
            yield _block(number, targets)
            number, size, targets = number + 1, 0, []
    if targets:
        yield _block(number, targets)


def _target(
    record: Record, intervals: "Mapping[str, Sequence[BedInterval]] | None", tally: Tally, *, keep_case: bool
) -> Target | None:
    text = record.sequence if keep_case else to_upper_dna(record.sequence)
    tally.records += 1
    tally.bases += len(text)
    tally.lower += record.sequence != record.sequence.upper()
    if not text:
        tally.empty.append(record.name)
        return None
    if intervals is None:
        return Target(id=record.name, text=text, places=None)
    found = intervals.get(record.name, ())
    if found:
        tally.contigs.add(record.name)
    inside = [one for one in found if one.interval.end <= len(text)]
    tally.beyond += [f"{one.interval} of {len(text):,} bp" for one in found if one.interval.end > len(text)]
    places = tuple(
        Place(start=one.interval.start, end=one.interval.end, name=one.name, strand=one.strand) for one in inside
    )
    return Target(id=record.name, text=text, places=places) if places else None


def _block(number: int, targets: Sequence[Target]) -> Block:
    digest = hashlib.blake2b(digest_size=16)
    for target in targets:
        digest.update(f"{target.id}\n{len(target.text)}\n{target.places}\n".encode())
        digest.update(target.text)
    return Block(number=number, digest=digest.hexdigest(), targets=tuple(targets))


def embed_block(
    model: "StripedHyena2", block: Block, progress: Callable[[int], None], *, options: EmbedOptions, folder: Path
) -> None:
    """Embed a block, and leave its vectors in a folder.

    Raises:
        Sh2Error: a value is beyond what the dtype can hold.
        OSError: the disk has no room for it.
    """
    from sh2.reading.embedding import embed_rows

    strands = (False, True) if options.both_strands else (False,)
    entries = [target.entry(options.pooling) for target in block.targets]
    rows = [target.row(options.pooling, reverse=reverse) for target in block.targets for reverse in strands]
    first = np.cumsum([0, *(entry.rows for entry in entries)])
    shape = len(options.sites), model.config.width * (2 if options.concat else 1)
    with writing_block(folder, block.number, block.digest, entries, shape, options.block_dtype) as array:
        for part in embed_rows(
            model, rows, options.sites, options.pooling, max_tokens=options.max_tokens, progress=progress
        ):
            number, strand = divmod(part.row, len(strands))
            _check(part, options, block.targets[number].id)
            _put(array[first[number] : first[number + 1]], part, strand, options)


def _check(part: "Part", options: EmbedOptions, name: str) -> None:
    """Refuse what would become infinite."""
    most = np.abs(part.values).max()
    if most > np.finfo(options.dtype).max:
        site = list(options.sites)[int(np.abs(part.values).max(axis=(0, 2)).argmax())]
        raise Sh2Error(f"record `{name}`: {site} has a value of {most:.4g}, more than {options.dtype} can hold").hint(
            "use --dtype float32"
        )


def _put(rows: npt.NDArray[np.floating], part: "Part", strand: int, options: EmbedOptions) -> None:
    """Write vectors of one strand where they belong in the rows of their record, counted along the forward strand."""
    values = part.values
    start = part.first
    if strand and options.pooling is Pooling.PER_BASE:
        start = len(rows) - start - len(values)
        values = values[::-1]
    place = rows[start : start + len(values)]
    if options.concat:
        width = values.shape[-1]
        place[..., strand * width : (strand + 1) * width] = values
    elif options.both_strands:
        place += values / 2
    else:
        place[:] = values
