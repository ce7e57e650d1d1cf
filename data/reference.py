"""A reference genome: contigs by name and any stretch of them.

A small file is read whole. A large one is indexed (pyfaidx) and read in blocks, of which a few are kept; where it
cannot be indexed (plain gzip, lines of uneven length, GenBank) it is read whole too, and `note` says so. The letters of
a FASTA reference are taken as they are: one odd letter in a genome must not keep anyone from the rest of it.
Knows nothing of variants; how names of contigs vary is data.contig_names' business.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pyfaidx

from data.bgzip import is_bgzip, refuse_cut_bgzip
from data.closing import Closing
from data.contig_names import ContigNames
from data.errors import DataError
from data.fasta import join_records, universal_newlines
from data.fasta_index import FAILURES, open_indexed
from data.reader import scan
from data.source import Source

READ_WHOLE = 64 << 20
"""Bytes: a file no larger than this is read whole."""
_BLOCK = 1 << 16
_BLOCKS_KEPT = 256


class Reference(Closing):
    """Random access to a reference; use it as a context manager or call `close`.

    contigs: length in bp of every contig, in the order of the file. names: which other names stand for which contig.
    note: what the user should know about how the file is read, or None. Takes FASTA (plain, bgzip, gzip), GenBank and
    EMBL. Raises DataError for what is none of them, is not DNA, or names a contig twice.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_whole: int = READ_WHOLE) -> None:
        self.path = Path(path)
        self.note: str | None = None
        self._whole: dict[str, bytes] = {}
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        refuse_cut_bgzip(self.path)
        large = self.path.is_file() and self.path.stat().st_size > read_whole
        self._index = self._open_indexed() if large else None
        if self._index is None:
            self._whole = self._read_whole()
            self.contigs = {name: len(sequence) for name, sequence in self._whole.items()}
            if large:
                self.note = (
                    f"{self.path}: cannot be read at random, so all {sum(self.contigs.values())} bases are held in"
                    " memory; plain or bgzip FASTA with lines of one length would not need that"
                )
        else:
            self.contigs = {name: int(record.rlen) for name, record in self._index.index.items()}
        self.names = ContigNames(self.contigs, str(self.path))

    def resolve(self, name: str) -> str | None:
        """The contig that a name stands for, or None; how it was found is in `names`. Raises as ContigNames.match."""
        if name in self.contigs:
            return name
        match = self.names.match(name)
        return match.contig if match else None

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Bases start .. end - 1 (0-based) of a contig, in the case of the file. `contig` must be in `contigs`.

        Raises DataError for an unknown contig and for what is not within it.
        """
        length = self.contigs.get(contig)
        if length is None:
            raise DataError(f"{self.path}: no contig {contig!r} among its {len(self.contigs)}").hint(
                f"the first are {', '.join(list(self.contigs)[:5])}"
            )
        if not 0 <= start <= end <= length:
            raise DataError(f"{self.path}: bases {start} to {end} are not within contig {contig!r} of {length} bp")
        if self._index is None:
            return self._whole[contig][start:end]
        first = start // _BLOCK
        if end <= (first + 1) * _BLOCK:
            joined = self._block(contig, first)
        else:
            joined = b"".join(self._block(contig, number) for number in range(first, (end - 1) // _BLOCK + 1))
        return joined[start - first * _BLOCK : end - first * _BLOCK]

    def _open_indexed(self) -> pyfaidx.Faidx | None:
        with Source(self.path) as source:
            if not _is_fasta(source):
                return None
            bgzip = is_bgzip(self.path)
            return None if source.compressed and not bgzip else open_indexed(self.path, bgzip=bgzip)

    def _read_whole(self) -> dict[str, bytes]:
        contigs: dict[str, bytes] = {}
        with Source(self.path) as source:
            if _is_fasta(source):
                records = _read_fasta(source)
            else:
                records = ((record.name, record.sequence) for record in join_records(scan(source)))
            for name, sequence in records:
                if name in contigs:
                    raise DataError(f"{source.name}: two contigs are named {name!r}").hint(
                        "the names of a reference's contigs (the first word after '>') must differ"
                    )
                contigs[name] = sequence
        return contigs

    def _block(self, contig: str, number: int) -> bytes:
        key = contig, number
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            return block
        block = self._blocks[key] = self._read_block(contig, number)
        if len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return block

    def _read_block(self, contig: str, number: int) -> bytes:
        assert self._index is not None
        start = number * _BLOCK
        end = min(start + _BLOCK, self.contigs[contig])
        try:
            text = str(self._index.fetch(contig, start + 1, end)) if end > start else ""
        except FAILURES as error:
            raise DataError(
                f"{self.path}: contig {contig!r}: bases {start} to {end} cannot be read: {error}"
            ) from error
        block = text.encode()
        if len(block) != end - start:
            raise DataError(
                f"{self.path}: contig {contig!r}: {len(block)} bases where {end - start} must be, from {start}"
            ).hint("the file changed while it was read, or it is damaged")
        if len(block.split()) > 1 or block.strip() != block:
            raise DataError(f"{self.path}: contig {contig!r}: white space within the sequence").hint(
                "remove blanks from the lines of the sequence: an index counts them as bases"
            )
        return block

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._index is not None:
            self._index.close()


def _is_fasta(source: Source) -> bool:
    return source.head.lstrip().startswith((b">", b";"))


def _read_fasta(source: Source) -> Iterator[tuple[str, bytes]]:
    """Names and sequences of a FASTA file, whatever the letters; white space and lines led by ; are dropped."""
    name: str | None = None
    parts: list[bytes] = []
    for lines in _whole_lines(source):
        sequence, *records = (b"\n" + lines).split(b"\n>")
        parts.append(_letters(sequence))
        for record in records:
            if name is not None:
                yield name, b"".join(parts)
            header, _, sequence = record.partition(b"\n")
            name = next(iter(header.decode("utf-8", "replace").split()), "")
            parts = [_letters(sequence)]
    if name is None:
        raise DataError(f"{source.name}: no record: the file holds no line that begins with '>'")
    yield name, b"".join(parts)


def _whole_lines(source: Source) -> Iterator[bytes]:
    rest = b""
    for chunk in universal_newlines(source.chunks()):
        end = chunk.rfind(b"\n") + 1
        if end:
            yield rest + chunk[:end]
            rest = b""
        rest += chunk[end:]
    yield rest


def _letters(lines: bytes) -> bytes:
    if b"\n;" in lines or lines.startswith(b";"):
        lines = b"\n".join(line for line in lines.split(b"\n") if not line.startswith(b";"))
    return lines.translate(None, b" \t\v\f\n")
