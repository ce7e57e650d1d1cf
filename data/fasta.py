"""FASTA, streamed: headers and pieces of sequence from chunks of bytes, wherever the borders of the chunks fall.

What is accepted: lines ended by LF, CRLF or CR, of any length; `>` at the start of a line begins a record, whose name
is the first word after it (none is allowed); lines that begin with `;` are comments; white space in a sequence is
dropped; letters are the IUPAC codes of DNA and RNA in either case. All else is a DataError with its line.
Knows nothing of files beyond data.source, nor of what becomes of the records.
"""

import os
from collections.abc import Iterable, Iterator

from data.errors import DataError
from data.pieces import Header, Piece, Record, letter_error, make_piece, shown
from data.source import CHUNK, Source

LONGEST_HEADER = 1 << 20
"""Bytes; a longer line that begins with `>` is refused: it would not be streamed."""
_BLANK = b" \t\v\f"
_NEWLINE, _GREATER, _SEMICOLON = b"\n"[0], b">"[0], b";"[0]

_TEXT_FORMATS = {
    b"LOCUS ": ("GenBank", "read it as such: `evo prepare` tells the formats apart"),
    b"ID   ": ("EMBL", "read it as such: `evo prepare` tells the formats apart"),
    b"@": ("FASTQ (or SAM)", "convert it to FASTA first, e.g. with `seqtk seq -A`"),
    b"##gff": ("GFF", "give the FASTA file of the sequences instead"),
    b"##fileformat=VCF": ("VCF", "give the FASTA file of the reference instead"),
    b"#NEXUS": ("NEXUS", "convert it to FASTA first"),
    b"CLUSTAL": ("a Clustal alignment", "convert it to FASTA first, without gaps"),
}


def universal_newlines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks with every CRLF and CR turned into LF; no empty chunk."""
    after_return = False
    for chunk in chunks:
        text = chunk[1:] if after_return and chunk[:1] == b"\n" else chunk
        after_return = chunk[-1:] == b"\r"
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if text:
            yield text


class _Scanner:
    """The state that outlives a chunk: the line, the record, and the header or comment that is still open."""

    def __init__(self, source: str, head: bytes) -> None:
        self.source = source
        self.head = head
        self.line = 1
        self.record: str | None = None
        self.at_line_start = True
        self.header: bytearray | None = None
        self.in_comment = False

    def feed(self, chunk: bytes) -> Iterator[Header | Piece]:
        """Events of one chunk with LF line ends; each search runs on from the last, so a chunk is read once."""
        position, greater, semicolon = 0, -1, -1
        while position < len(chunk):
            if self.header is not None or self.in_comment:
                end = chunk.find(b"\n", position)
                yield from self._line(chunk[position : end if end >= 0 else len(chunk)], ended=end >= 0)
                position = end + 1 if end >= 0 else len(chunk)
                continue
            if self.at_line_start and chunk[position] in (_GREATER, _SEMICOLON):
                self.header = bytearray() if chunk[position] == _GREATER else None
                self.in_comment = self.header is None
                position += 1
                continue
            greater = _next(chunk, b">", position, greater)
            semicolon = _next(chunk, b";", position, semicolon)
            stop = min(greater, semicolon)
            if stop < len(chunk) and (stop == position or chunk[stop - 1] != _NEWLINE):
                stop += 1  # a mark in the middle of a line: taken in, so that it is refused as a letter
            yield from self._sequence(chunk[position:stop])
            position = stop

    def _line(self, text: bytes, *, ended: bool) -> Iterator[Header]:
        """A part of the open header or comment."""
        if self.header is not None:
            self.header += text
            if len(self.header) > LONGEST_HEADER:
                raise DataError(f"{self.source}: line {self.line}: a header of more than {LONGEST_HEADER} bytes")
            if ended:
                yield self.end_header()
        if ended:
            self.line += 1
            self.header, self.in_comment, self.at_line_start = None, False, True

    def end_header(self) -> Header:
        """The header that is open, complete. Raises DataError for a NUL byte."""
        text = bytes(self.header or b"")
        if b"\x00" in text:
            raise DataError(f"{self.source}: line {self.line}: the header holds a NUL byte").hint(
                "the file is binary, damaged or not in ASCII (UTF-16, for example)"
            )
        words = text.split(None, 1)
        name = words[0].decode("utf-8", "replace") if words else ""
        description = words[1].rstrip().decode("utf-8", "replace") if len(words) > 1 else ""
        self.record = name
        return Header(name=name, description=description, line=self.line)

    def _sequence(self, text: bytes) -> Iterator[Piece]:
        """Lines of sequence; the last may go on in the next chunk."""
        joined = text.replace(b"\n", b"")
        if self.record is None and joined.translate(None, _BLANK):
            raise self._headless(text)
        piece = make_piece(joined, _BLANK)
        if piece is None:
            raise letter_error(text, _BLANK + b"\n", source=self.source, line=self.line, record=self.record or "")
        self.line += len(text) - len(joined)
        self.at_line_start = text[-1] == _NEWLINE
        if piece.bases:
            yield piece

    def _headless(self, text: bytes) -> DataError:
        rest = text.lstrip(_BLANK + b"\n")
        line = self.line + text.count(b"\n", 0, len(text) - len(rest))
        if rest[0] == _GREATER:
            return DataError(f"{self.source}: line {line}: a '>' that is not at the start of its line").hint(
                "remove the blanks before the header"
            )
        message = f"{self.source}: line {line}: {shown(rest[0])} stands before the first '>' header"
        for start, (kind, advice) in _TEXT_FORMATS.items():
            if self.head.lstrip().startswith(start):
                return DataError(f"{message}; the file looks like {kind}").hint(advice)
        return DataError(message).hint("a FASTA record begins with a line `>name`")


def _next(chunk: bytes, mark: bytes, position: int, known: int) -> int:
    """First place of a mark at or after the position, the chunk's length for none; `known` is the last answer."""
    if known >= position:
        return known
    found = chunk.find(mark, position)
    return found if found >= 0 else len(chunk)


def scan_fasta(chunks: Iterable[bytes], source: str, head: bytes = b"") -> Iterator[Header | Piece]:
    """Every record's header followed by its pieces, none longer than a chunk; an empty record has no piece.

    chunks: the bytes of the file, cut anywhere; source: its name for messages; head: its first bytes, for advice.
    Raises DataError, naming source and line, for a file that is empty, headless or not DNA.
    """
    scanner = _Scanner(source, head)
    for chunk in universal_newlines(chunks):
        yield from scanner.feed(chunk)
    if scanner.header is not None:
        yield scanner.end_header()
    if scanner.record is None:
        lack = (
            "holds no line that begins with '>'" if head.strip() else "holds only white space" if head else "is empty"
        )
        raise DataError(f"{source}: no record: the file {lack}").hint("a FASTA record begins with a line `>name`")


def join_records(events: Iterable[Header | Piece]) -> Iterator[Record]:
    """Whole records from a stream of headers and pieces; each is held in memory."""
    header: Header | None = None
    parts: list[bytes] = []
    for event in events:
        if isinstance(event, Piece):
            parts.append(event.bases)
            continue
        if header is not None:
            yield Record(name=header.name, description=header.description, sequence=b"".join(parts))
        header, parts = event, []
    if header is not None:
        yield Record(name=header.name, description=header.description, sequence=b"".join(parts))


def read_fasta(path: str | os.PathLike[str], *, chunk: int = CHUNK) -> Iterator[Record]:
    """Records of a FASTA file, plain or gzip; `-` is standard input; `chunk` is how many bytes are read at a time.

    Raises DataError, naming file, line, record and letter, for what is not FASTA of DNA.
    """
    with Source(path) as source:
        yield from join_records(scan_fasta(source.chunks(chunk), source.name, source.head))
