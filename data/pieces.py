"""What every reader of sequence files yields: the header of a record, then its bases in pieces of bounded size.

Knows the alphabet and how to say what is wrong with a byte; knows nothing of file formats.
"""

from dataclasses import dataclass

from data.errors import DataError
from data.sequence import ALLOWED_TEXT, ALPHABET

_UPPER_BASES, _LOWER_BASES = b"ACGT", b"acgt"
_GAPS = b"-*.~"
_PROTEIN_ONLY = b"EFIJLOPQXZefijlopqxz"


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The start of a record: name (may be empty), the rest of its title, the line of the file it stands on."""

    name: str
    description: str
    line: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Bases of the current record, as they were written (case and U kept), all of them letters of the alphabet.

    lower: how many of them are a, c, g or t; codes: those that are no true bases (U and ambiguity codes), in order.
    Both are nothing for most genomes, and what follows can then be skipped.
    """

    bases: bytes
    lower: int
    codes: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A whole record. sequence: its letters as they were written (case and U kept)."""

    name: str
    description: str
    sequence: bytes


def make_piece(text: bytes, ignored: bytes) -> Piece | None:
    """The bases of a text without the ignored bytes, or None when it holds a byte that is neither base nor ignored."""
    others = text.translate(None, _UPPER_BASES)
    if not others:
        return Piece(bases=text, lower=0, codes=b"")
    codes = others.translate(None, _LOWER_BASES)
    lower = len(others) - len(codes)
    strange = codes.translate(None, ALPHABET)
    if not strange:
        return Piece(bases=text, lower=lower, codes=codes)
    if strange.translate(None, ignored):
        return None
    return Piece(bases=text.translate(None, ignored), lower=lower, codes=codes.translate(None, ignored))


def letter_error(text: bytes, ignored: bytes, *, source: str, line: int, record: str) -> DataError:
    """The error for a text that `make_piece` refused: its first byte that is neither base nor ignored.

    text: lines ended by newline bytes, the first of them is number `line` of `source`.
    """
    letter = text.translate(None, ALPHABET + ignored)[0]
    number = line + text.count(b"\n", 0, text.index(letter))
    return DataError(
        f"{source}: line {number}: record {record!r}: {shown(letter)} is not DNA; allowed are {ALLOWED_TEXT}"
    ).hint(_advice(letter))


def shown(letter: int) -> str:
    """A byte for a message: the character in quotes, or its number when it cannot be printed."""
    if 32 < letter < 127:
        return repr(chr(letter))
    return f"byte 0x{letter:02X}" + (" (NUL)" if letter == 0 else "")


def _advice(letter: int) -> str:
    if letter == ord(">"):
        return "a '>' header must stand at the start of its line"
    if letter in _GAPS:
        return "remove gaps and stops first: an alignment or a translation is not a sequence of bases"
    if letter in _PROTEIN_ONLY:
        return "it looks like protein; evo reads DNA and RNA"
    if letter in b"@+":
        return "it looks like FASTQ; convert it to FASTA first, e.g. with `seqtk seq -A`"
    if letter == 0 or letter > 127:
        return "the file is binary, damaged or not in ASCII (UTF-16, for example)"
    return "mend or remove the record"
