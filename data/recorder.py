"""Between a reader and the store's writer: turns headers and pieces into records, counts, hashes and drops.

Empty records and records under a least length are dropped and counted; U becomes T and is counted; ambiguity codes and
lower case are kept and counted. Knows one record at a time; knows nothing of files or splits.
"""

import hashlib
from dataclasses import dataclass

from data.pieces import Header, Piece
from data.sequence import URACIL_TO_THYMINE
from data.store_writer import RecordRow, StoreWriter
from data.tags import Tags

_LOWER_CODES = b"uryswkmbdhvn"
_MANY_NAMES = 5
HASH_BYTES = 16


@dataclass
class Counts:
    """What was met so far: bases and records in the store, what was skipped, what was kept but is special."""

    records: int = 0
    bases: int = 0
    skipped_bases_short: int = 0
    skipped_records_short: int = 0
    skipped_records_empty: int = 0
    masked_bases_ambiguous: int = 0
    lower_case_bases: int = 0
    converted_bases_u: int = 0

    def rows(self, tokens: int) -> dict[str, int]:
        """The counts by name, in the order they are printed in."""
        return {
            "records": self.records,
            "bases": self.bases,
            "tokens": tokens,
            "skipped_bases": self.skipped_bases_short,
            "skipped_bases_short": self.skipped_bases_short,
            "skipped_records_short": self.skipped_records_short,
            "skipped_records_empty": self.skipped_records_empty,
            "masked_bases_ambiguous": self.masked_bases_ambiguous,
            "lower_case_bases": self.lower_case_bases,
            "converted_bases_u": self.converted_bases_u,
        }


class Recorder:
    """Feeds a StoreWriter: `start` a record, `add` its pieces, `end` the last record of a file."""

    def __init__(self, writer: StoreWriter, min_length: int, tags: Tags | None) -> None:
        self.counts = Counts()
        self._writer = writer
        self._min_length = min_length
        self._tags = tags
        self._tagged: set[str] = set()
        self._header: Header | None = None
        self._source = 0
        self._held: list[Piece] = []

    def start(self, header: Header, source: int) -> None:
        """A record begins, in the file of this number; the one before it ends."""
        self.end()
        self._header, self._source = header, source
        self._offset = self._writer.position
        self._length = 0
        self._digest = hashlib.blake2b(digest_size=HASH_BYTES)

    def add(self, piece: Piece) -> None:
        """More bases of the record; held back until it is long enough to be kept."""
        self._length += len(piece.bases)
        if self._length < self._min_length:
            self._held.append(piece)
            return
        for held in self._held:
            self._store(held)
        self._held.clear()
        self._store(piece)

    def _store(self, piece: Piece) -> None:
        bases = piece.bases
        if piece.codes:
            uracils = piece.codes.count(b"U") + piece.codes.count(b"u")
            self.counts.lower_case_bases += len(piece.codes) - len(piece.codes.translate(None, _LOWER_CODES))
            self.counts.masked_bases_ambiguous += len(piece.codes) - uracils
            self.counts.converted_bases_u += uracils
            bases = bases.translate(URACIL_TO_THYMINE) if uracils else bases
        self.counts.lower_case_bases += piece.lower
        self._digest.update(bases.upper() if piece.lower or piece.codes else bases)
        self._writer.add_bases(bases)

    def end(self) -> None:
        """The record that is open, if any, is complete."""
        if self._header is None:
            return
        if self._length == 0:
            self.counts.skipped_records_empty += 1
        elif self._length < self._min_length:
            self.counts.skipped_records_short += 1
            self.counts.skipped_bases_short += self._length
        else:
            self.counts.records += 1
            self.counts.bases += self._length
            self._writer.end_record(self._row(self._header))
        self._held.clear()
        self._header = None

    def _row(self, header: Header) -> RecordRow:
        tag = self._tags.by_record.get(header.name, -1) if self._tags is not None else -1
        if tag >= 0:
            self._tagged.add(header.name)
        return RecordRow(
            name=header.name,
            description=header.description,
            source=self._source,
            offset=self._offset,
            length=self._length,
            content_hash=self._digest.digest(),
            tag=tag,
        )

    def tag_warnings(self) -> list[str]:
        """Sentences on rows of the tag file that named no record kept."""
        unused = [name for name in self._tags.by_record if name not in self._tagged] if self._tags is not None else []
        if not unused:
            return []
        shown = ", ".join(repr(name) for name in unused[:_MANY_NAMES]) + (", ..." if len(unused) > _MANY_NAMES else "")
        return [f"{len(unused)} record(s) of the tag file are not in the store: {shown}"]
