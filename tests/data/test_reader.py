"""Readers of every format: told apart by content, from any kind of file."""

import gzip
import hashlib
import io
import os
import sys
import warnings
from pathlib import Path

import pysam
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord

from data.errors import DataError
from data.pieces import Piece
from data.reader import has_known_suffix, read_records, scan
from data.source import Source


def flat_file(records: list[SeqRecord], dialect: str) -> bytes:
    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SeqIO.write(records, text, dialect)
    return text.getvalue().encode()


def record(name: str, sequence: str) -> SeqRecord:
    return SeqRecord(Seq(sequence), id=name, name=name.split(".")[0], description="a test record, of two  parts",
                     annotations={"molecule_type": "DNA"})  # fmt: skip


TWO = [record("AB000001.1", "ACGTN" * 50), record("AB000002.3", "ttrga" * 27)]
EXPECTED = [("AB000001.1", b"ACGTN" * 50), ("AB000002.3", b"TTRGA" * 27)]


def read(path: Path) -> list[tuple[str, bytes]]:
    return [(found.name, found.sequence.upper()) for found in read_records(path)]


@pytest.mark.parametrize("dialect", ["genbank", "embl"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_flat_files(tmp_path: Path, dialect: str, packed: bool, ends: bytes) -> None:
    data = flat_file(TWO, dialect).replace(b"\n", ends)
    path = tmp_path / "name.without.meaning"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read(path) == EXPECTED
    assert next(iter(read_records(path))).description == "a test record, of two parts"


@pytest.mark.parametrize("dialect", ["genbank", "embl"])
def test_flat_files_agree_with_biopython(tmp_path: Path, dialect: str) -> None:
    long = [record("XY123456.7", "gattacaNNNcatrykm" * 9999), *TWO]
    path = tmp_path / "long.txt"
    path.write_bytes(flat_file(long, dialect))
    with path.open() as file:
        whole = [(found.id, bytes(found.seq).upper()) for found in SeqIO.parse(file, dialect)]
    assert read(path) == whole
    with Source(path) as source:
        assert b"".join(p.bases for p in scan(source, 11) if isinstance(p, Piece)).upper() == b"".join(
            sequence for _, sequence in whole
        )


def test_a_genbank_release_file_with_a_preface(tmp_path: Path) -> None:
    path = tmp_path / "release.seq"
    preface = b"GBBCT1.SEQ          Genetic Sequence Data Bank\n              October 15 2020\n\n"
    path.write_bytes(preface + flat_file(TWO, "genbank"))
    assert read(path) == EXPECTED


GENBANK = flat_file(TWO, "genbank").decode()
EMBL = flat_file(TWO, "embl").decode()
CONTIG = GENBANK[: GENBANK.index("ORIGIN")] + "CONTIG      join(AB000009.1:1..250)\n//\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTIG, "line 1: record 'AB000001' has no sequence"),
        (EMBL[: EMBL.index("SQ   ")] + "//\n", "line 1: record 'AB000001' has no sequence"),
        ("LOCUS       X 5 bp DNA linear UNK\nORIGIN\n//\n", "line 1: record 'X' has no sequence"),
        (GENBANK[:-60], "record 'AB000002.3': the file ends before its '//' line: it is truncated"),
        (GENBANK[:100], "line 2: the file ends within a record: it is truncated"),
        (GENBANK.replace("250 bp", "251 bp"), "its first line promises 251 bases, it holds 250"),
        (GENBANK.replace("acgtnacgtn", "acgtnacgte", 1).replace("ACGTNACGTN", "ACGTNACGTE", 1), "'e' is not DNA"),
        (GENBANK.replace("//\nLOCUS", "//\nLOCAL"), "stands where the next record's LOCUS line should"),
        ("LOCUS \n//\n", "line 1: record '' has no sequence"),
        ("LOCUS       a b c d e f g\nORIGIN\n//\n", "line 1: Biopython cannot read this genbank record: "),
        ("LOCUS " + "x" * (2 << 20), "line 1: a line of more than 1048576 bytes"),
    ],
)
def test_flat_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.gbk"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: line ")


def test_multi_member_gzip_and_bgzip(tmp_path: Path) -> None:
    members, blocks = tmp_path / "a.fa", tmp_path / "b.fa"
    members.write_bytes(
        gzip.compress(b">a\nAC") + gzip.compress(b"") + gzip.compress(b"GT\n>b\n") + gzip.compress(b"TT")
    )
    assert read(members) == [("a", b"ACGT"), ("b", b"TT")]
    with pysam.BGZFile(str(blocks), "w") as file:
        file.write(b">a\n" + b"ACGT" * 100_000 + b"\n")
    assert read(blocks) == [("a", b"ACGT" * 100_000)]


@pytest.mark.parametrize("data", [b">a\nAC\n", gzip.compress(b">a\nAC\n"), b"\xef\xbb\xbf>a\r\nAC"])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read(Path("-")) == [("a", b"AC")]
    assert not sys.stdin.closed


def test_standard_input_is_named_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b">a\nA*\n")))
    with pytest.raises(DataError, match="standard input: line 2: record 'a'"):
        read(Path("-"))


def test_source_knows_the_size_and_checksum_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">a\n" + b"ACGT" * 1000))
    with Source(path, checksum=True) as source:
        list(source.chunks(100))
        assert source.bytes_read == path.stat().st_size
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.fa", True), ("a.FASTA.GZ", True), ("a.fna.bgz", True), ("a.gbk", True), ("a.embl.gz", True), ("a.faa", False),
     ("a.gz", False), ("fa", False), ("a.fa.fai", False), ("a.h5", False)],
)  # fmt: skip
def test_known_suffixes(name: str, known: bool) -> None:
    assert has_known_suffix(name) is known


def test_a_stream_that_does_not_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading) as stream, open(writing, "w"):
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(DataError, match="standard input: cannot be read: the stream does not wait for its data"):
            read(Path("-"))
