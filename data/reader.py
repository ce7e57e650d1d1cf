"""Sequence files of any kind that evo reads, told apart by what they hold, never by their names.

Knows which module reads which format and which names a folder is searched for; knows nothing of what becomes of the
records.
"""

import os
from collections.abc import Iterator

from data.fasta import join_records, scan_fasta
from data.genbank import EMBL, GENBANK, scan_flat_file
from data.pieces import Header, Piece, Record
from data.source import CHUNK, Source

_FLAT_CHUNK = 1 << 20
_PREFACE = b"Genetic Sequence Data Bank"

SUFFIXES = frozenset({
    ".fa", ".fasta", ".fna", ".ffn", ".fas", ".fsa", ".frn", ".gb", ".gbk", ".gbff", ".genbank", ".embl",
})  # fmt: skip
"""What a folder is searched for, each also with .gz, .bgz or .bgzf behind it."""
COMPRESSED_SUFFIXES = frozenset({".gz", ".bgz", ".bgzf"})


def has_known_suffix(name: str) -> bool:
    """Whether a file of a folder is taken for a file of sequences."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in COMPRESSED_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    return suffix in SUFFIXES


def scan(source: Source, chunk: int = CHUNK) -> Iterator[Header | Piece]:
    """Headers and pieces of an opened FASTA, GenBank or EMBL file, in bounded memory; `chunk`: bytes read at a time.

    Raises DataError, naming file and line, for what is none of them or not DNA.
    """
    head = source.head.lstrip()
    if head.startswith(GENBANK.start) or (_PREFACE in head and head[:1] not in b">;"):
        return scan_flat_file(source.chunks(min(chunk, _FLAT_CHUNK)), source.name, GENBANK)
    if head.startswith(EMBL.start):
        return scan_flat_file(source.chunks(min(chunk, _FLAT_CHUNK)), source.name, EMBL)
    return scan_fasta(source.chunks(chunk), source.name, source.head)


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Whole records of a FASTA, GenBank or EMBL file, plain or gzip; `-` is standard input.

    Raises DataError, naming file, line, record and letter, for what is none of them or not DNA.
    """
    with Source(path) as source:
        yield from join_records(scan(source))
