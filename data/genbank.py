"""GenBank and EMBL flat files, streamed: Biopython reads the head of a record, this module its sequence.

Biopython holds a record and its features whole (more than 1 GB for a human chromosome). So it is given the lines from
LOCUS or ID up to the feature table, the features are passed over, and the lines of sequence are read in pieces.
The name of a record is its accession with version, where it has one.
Knows the outline of the two formats; knows nothing of what becomes of the records.
"""

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from Bio import BiopythonWarning, SeqIO

from data.errors import DataError
from data.fasta import universal_newlines
from data.pieces import Header, Piece, letter_error, make_piece

_LONGEST_LINE = 1 << 20
_LONGEST_HEAD = 16 << 20
_PIECE = 1 << 20
_IGNORED = b"0123456789 \t\n"
_LONGEST_QUOTE = 40


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What tells the parts of a record. length: the number of bases that the first line promises."""

    name: str
    start: bytes
    features: tuple[bytes, ...]
    sequence: bytes
    length: re.Pattern[bytes]
    closing: str
    advice: str


GENBANK = Dialect(
    name="genbank",
    start=b"LOCUS ",
    features=(b"FEATURES", b"CONTIG", b"BASE COUNT", b"WGS", b"TSA"),
    sequence=b"ORIGIN",
    length=re.compile(rb"\s(\d+) (?:bp|aa|rc)\b"),
    closing="ORIGIN\n//\n",
    advice="download the full record (`gbwithparts`), not the summary",
)
EMBL = Dialect(
    name="embl",
    start=b"ID   ",
    features=(b"FH   ", b"FT   ", b"CO   "),
    sequence=b"SQ   ",
    length=re.compile(rb"\s(\d+) (?:BP|AA)\."),
    closing="SQ   Sequence 0 BP;\n//\n",
    advice="download the full record, with its sequence",
)


class _Lines:
    """Lines without their ends, numbered from 1, from chunks cut anywhere."""

    def __init__(self, chunks: Iterable[bytes], source: str) -> None:
        self._chunks = chunks
        self.source = source
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        for chunk in universal_newlines(self._chunks):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.number += 1
                yield line
            if len(rest) > _LONGEST_LINE:
                raise self.error(f"a line of more than {_LONGEST_LINE} bytes", at=self.number + 1)
        if rest:
            self.number += 1
            yield rest

    def error(self, message: str, at: int | None = None) -> DataError:
        return DataError(f"{self.source}: line {self.number if at is None else at}: {message}")


def scan_flat_file(chunks: Iterable[bytes], source: str, dialect: Dialect) -> Iterator[Header | Piece]:
    """Every record's header followed by its pieces of about 1 MiB.

    chunks: the bytes of the file, cut anywhere; source: its name for messages.
    Raises DataError for a record without sequence, one cut short, one whose length is not the one it promises, and
    letters that are not DNA.
    """
    lines = _Lines(chunks, source)
    stream = iter(lines)
    found = False
    for line in stream:
        if not line.strip():
            continue
        if line.startswith(dialect.start):
            yield from _record(line, stream, lines, dialect)
            found = True
        elif found:
            start, quoted = dialect.start.decode().strip(), line[:_LONGEST_QUOTE].decode("ascii", "replace")
            raise lines.error(f"{quoted!r} stands where the next record's {start} line should")
    if not found:
        raise DataError(f"{source}: no {dialect.name} record")


def _record(first: bytes, stream: Iterator[bytes], lines: _Lines, dialect: Dialect) -> Iterator[Header | Piece]:
    start = lines.number
    head = _read_head(first, stream, lines, dialect)
    header = _parse_head(head, start, lines, dialect)
    yield header
    count = 0
    for piece in _sequence(stream, lines, header.name):
        count += len(piece.bases)
        yield piece
    where = f"{lines.source}: line {start}: record {header.name!r}"
    if count == 0:
        raise DataError(f"{where} has no sequence").hint(dialect.advice)
    promised = dialect.length.search(first)
    if promised is not None and int(promised[1]) != count:
        raise DataError(f"{where}: its first line promises {int(promised[1])} bases, it holds {count}").hint(
            "the file is damaged or was edited by hand; correct the length or download it again"
        )


def _read_head(first: bytes, stream: Iterator[bytes], lines: _Lines, dialect: Dialect) -> bytes:
    """Lines up to the feature table; the stream is left after the line that opens the sequence."""
    start, head, size, in_head = lines.number, [first], len(first), True
    for line in stream:
        if line.startswith(dialect.sequence):
            return b"\n".join(head)
        if line.startswith(b"//"):
            name = first.removeprefix(dialect.start).decode("ascii", "replace").partition(";")[0].split()[:1]
            raise lines.error(f"record {''.join(name)!r} has no sequence", at=start).hint(dialect.advice)
        in_head = in_head and not line.startswith(dialect.features)
        if in_head:
            head.append(line)
            size += len(line)
        if size > _LONGEST_HEAD:
            raise lines.error(f"a record with more than {_LONGEST_HEAD} bytes before its features", at=start)
    raise lines.error("the file ends within a record: it is truncated")


def _parse_head(head: bytes, line: int, lines: _Lines, dialect: Dialect) -> Header:
    text = head.decode("utf-8", "replace") + "\n" + dialect.closing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiopythonWarning)
            record = next(SeqIO.parse(io.StringIO(text), dialect.name))
    except Exception as error:  # Biopython's parsers raise nearly anything for a malformed head
        reason = str(error) or type(error).__name__
        raise lines.error(f"Biopython cannot read this {dialect.name} record: {reason}", at=line) from error
    description = "" if record.description == "<unknown description>" else " ".join(record.description.split())
    return Header(name=record.id, description=description, line=line)


def _sequence(stream: Iterator[bytes], lines: _Lines, record: str) -> Iterator[Piece]:
    """Pieces up to the line `//`."""
    held: list[bytes] = []
    size, start = 0, lines.number + 1
    for line in stream:
        ended = line.startswith(b"//")
        if not ended:
            held.append(line)
            size += len(line)
        if held and (ended or size >= _PIECE):
            text = b"\n".join(held)
            piece = make_piece(text.translate(None, _IGNORED), b"")
            if piece is None:
                raise letter_error(text, _IGNORED, source=lines.source, line=start, record=record)
            if piece.bases:
                yield piece
            held, size, start = [], 0, lines.number + 1
        if ended:
            return
    raise lines.error(f"record {record!r}: the file ends before its '//' line: it is truncated")
