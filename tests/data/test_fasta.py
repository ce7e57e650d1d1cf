"""FASTA, against a parser of whole lines, wherever the borders of chunks fall."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.fasta import LONGEST_HEADER, join_records, read_fasta, scan_fasta, universal_newlines
from data.pieces import Header, Piece

LETTERS = b"ACGTURYSWKMBDHVNacgturyswkmbdhvn"
PARTS = [b">", b">", b";", b"\n", b"\n", b"\r", b"\r\n", b" ", b"\t", b"A", b"acgtn", b"RYu", b"GG", b"E", b"\0", b"-"]
texts = st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join)
fine_texts = st.lists(st.sampled_from(PARTS[:13]), max_size=40).map(lambda parts: b">x\n" + b"".join(parts))


def oracle(data: bytes) -> tuple[list[tuple[str, bytes]], int | None]:
    """(records, line that is wrong): a parser that holds the whole file and looks at one line at a time."""
    records: list[tuple[str, bytes]] = []
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        letters = b"".join(line.split())
        if line.startswith(b">"):
            if b"\0" in line:
                return records, number
            records.append((b" ".join(line[1:].split()[:1]).decode(), b""))
        elif line.startswith(b";") or not letters:
            continue
        elif not records or any(letter not in LETTERS for letter in letters):
            return records, number
        else:
            records[-1] = (records[-1][0], records[-1][1] + letters)
    return records, None


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in chunks of these sizes, over and over."""
    chunks, start, index = [], 0, 0
    while start < len(data):
        size = sizes[index % len(sizes)]
        chunks.append(data[start : start + size])
        start, index = start + size, index + 1
    return chunks


@settings(max_examples=1000, deadline=None)
@given(st.one_of(texts, fine_texts), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_agrees_with_the_line_parser_however_it_is_cut(data: bytes, sizes: list[int]) -> None:
    records, wrong_line = oracle(data)
    if wrong_line is None and records:
        found = [(record.name, record.sequence) for record in join_records(scan_fasta(cut(data, sizes), "f"))]
        assert found == records
        return
    with pytest.raises(DataError) as caught:
        list(scan_fasta(cut(data, sizes), "f"))
    assert str(caught.value).startswith(f"f: line {wrong_line}: " if wrong_line is not None else "f: no record: ")


@given(fine_texts, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_pieces_count_their_letters(data: bytes, sizes: list[int]) -> None:
    if oracle(data)[1] is not None:
        return
    for event in scan_fasta(cut(data, sizes), "f"):
        if isinstance(event, Piece):
            assert event.bases
            assert event.lower == sum(letter in b"acgt" for letter in event.bases)
            assert event.codes == bytes(letter for letter in event.bases if letter not in b"ACGTacgt")


@given(texts, st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_universal_newlines(data: bytes, sizes: list[int]) -> None:
    chunks = list(universal_newlines(cut(data, sizes)))
    assert b"".join(chunks) == data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert all(chunks)


@pytest.mark.parametrize(
    ("data", "records"),
    [
        (b">a\nACGT\n", [("a", "", b"ACGT")]),
        (b">a\nACGT", [("a", "", b"ACGT")]),
        (b">a\r\nAC\r\nGT\r\n", [("a", "", b"ACGT")]),
        (b">a\rAC\rGT\r>b\rTT", [("a", "", b"ACGT"), ("b", "", b"TT")]),
        (b">a\r\n\r\n\r\nAC\r\n", [("a", "", b"AC")]),
        (b"\xef\xbb\xbf>a\nAC\n", [("a", "", b"AC")]),
        (b"\n \n\t\n>a\nAC\n", [("a", "", b"AC")]),
        (b">  a  some text \nAC\n", [("a", "some text", b"AC")]),
        (b">\tx\ty\nAC\n", [("x", "y", b"AC")]),
        (b">\nAC\n> \nGG\n", [("", "", b"AC"), ("", "", b"GG")]),
        (b">a\n>b\n\n>c\nA\n", [("a", "", b""), ("b", "", b""), ("c", "", b"A")]),
        (b">a\nA\n>a\nC\n", [("a", "", b"A"), ("a", "", b"C")]),
        (b">a\nA C\tG\x0bT\x0c\n GG\n", [("a", "", b"ACGTGG")]),
        (b";old\n>a ; b > c\n;x>y\nAC\n;GT\n;\nA\n", [("a", "; b > c", b"ACA")]),
        (b">a\nACG\nA\n\nACGTACGT\nAC\n", [("a", "", b"ACGAACGTACGTAC")]),
        (b">a\n" + LETTERS + b"\n", [("a", "", LETTERS)]),
        (b">a\nAC\n>", [("a", "", b"AC"), ("", "", b"")]),
        (b">a", [("a", "", b"")]),
        (b">a>b\nAC\n", [("a>b", "", b"AC")]),
        (b">caf\xc3\xa9 na\xefve\nAC\n", [("café", "na\ufffdve", b"AC")]),
        (b">" + b"x" * 100_000 + b" y\nAC\n", [("x" * 100_000, "y", b"AC")]),
    ],
)
def test_what_is_accepted(tmp_path: Path, data: bytes, records: list[tuple[str, str, bytes]]) -> None:
    for name, content in (("plain.txt", data), ("gzipped.fa", gzip.compress(data))):
        path = tmp_path / name
        path.write_bytes(content)
        for chunk in (1, 2, 3, 1 << 20):
            assert [(r.name, r.description, r.sequence) for r in read_fasta(path, chunk=chunk)] == records


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"", "FILE: no record: the file is empty", "a FASTA record begins with a line `>name`"),
        (b"\n\n \n", "FILE: no record: the file holds only white space", "begins with a line"),
        (b";only\n;comments", "FILE: no record: the file holds no line that begins with '>'", "begins with a line"),
        (b"ACGT\n>a\nAC\n", "FILE: line 1: 'A' stands before the first '>' header", "begins with a line"),
        (b"\n\nssc\n", "FILE: line 3: 's' stands before the first '>' header", "begins with a line"),
        (b"  >a\nAC\n", "FILE: line 1: a '>' that is not at the start of its line", "remove the blanks"),
        (b">a\nAC>b\nAC\n", "FILE: line 2: record 'a': '>' is not DNA", "at the start of its line"),
        (b">a\nAC\n >b\nAC\n", "FILE: line 3: record 'a': '>' is not DNA", "at the start of its line"),
        (b">a\nAC;x\n", "FILE: line 2: record 'a': ';' is not DNA", "mend or remove the record"),
        (b">a\nACGT\nAC-GT\n", "FILE: line 3: record 'a': '-' is not DNA; allowed are ACGT, U and the IUPAC", "gaps"),
        (b">a\nACGT*\n", "FILE: line 2: record 'a': '*' is not DNA", "gaps"),
        (b">p\nMKV\nLEF\n", "FILE: line 3: record 'p': 'L' is not DNA", "it looks like protein"),
        (b">a\nAC1\n", "FILE: line 2: record 'a': '1' is not DNA", "mend"),
        (b">a\r\nAC\r\nA\0C\r\n", "FILE: line 3: record 'a': byte 0x00 (NUL) is not DNA", "binary, damaged"),
        (b">a\nAC\xa0GT\n", "FILE: line 2: record 'a': byte 0xA0 is not DNA", "binary, damaged"),
        (b">a\nAC\x1a", "FILE: line 2: record 'a': byte 0x1A is not DNA", "mend"),
        (b">\0a\0\n\0A\0", "FILE: line 1: the header holds a NUL byte", "UTF-16"),
        (b">a\nAC\n+\nIIII\n", "FILE: line 3: record 'a': '+' is not DNA", "FASTQ"),
        (
            b"@r1\nACGT\n+\nIIII\n",
            "FILE: line 1: '@' stands before the first '>' header; the file looks like FASTQ",
            "s",
        ),
        (
            b"##gff-version 3\n",
            "FILE: line 1: '#' stands before the first '>' header; the file looks like GFF",
            "FASTA",
        ),
        (
            b"##fileformat=VCFv4.2\n",
            "FILE: line 1: '#' stands before the first '>' header; the file looks like VCF",
            "",
        ),
        (b"chr1\t1\t5\n", "FILE: line 1: 'c' stands before the first '>' header", "begins with a line"),
        (b"\xff\xfe>\0a\0", "FILE: is UTF-16 text, not FASTA", "iconv"),
        (b"BZh91AY&SY", "FILE: is bzip2, not FASTA", "bzip2 -dc"),
        (b"\xfd7zXZ\x00\x00", "FILE: is xz, not FASTA", "xz -dc"),
        (b"\x28\xb5\x2f\xfd\x04", "FILE: is Zstandard, not FASTA", "zstd -dc"),
        (b"PK\x03\x04\x14", "FILE: is a zip archive, not FASTA", "unzip"),
        (b"\x89HDF\r\n", "FILE: is an HDF5 file, not FASTA", "evo train"),
        (gzip.compress(b"BAM\x01"), "FILE: is BAM, not FASTA", "samtools fasta"),
        (gzip.compress(gzip.compress(b">a\nAC\n")), "FILE: is gzip inside gzip, not FASTA", "gzip -dc"),
        (gzip.compress(b""), "FILE: no record: the file is empty", "begins with a line"),
        (gzip.compress(b">a\nAC\n")[:-9], "FILE: the gzip data end before they should: the file is truncated", "again"),
        (b"\x1f\x8b", "FILE: the gzip data end before they should: the file is truncated", "again"),
        (gzip.compress(b">a\nAC\n") + b"junk", "FILE: the gzip data are damaged: ", "again"),
        (
            gzip.compress(b">a\nAC\n")[:-8] + b"\1\1\1\1\6\0\0\0",
            "FILE: the gzip data are damaged: CRC check failed",
            "",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, message: str, hint: str) -> None:
    path = tmp_path / "input.fa"
    path.write_bytes(data)
    for chunk in (1, 7, 1 << 20):
        with pytest.raises(DataError) as caught:
            list(read_fasta(path, chunk=chunk))
        assert str(caught.value).startswith(message.replace("FILE", str(path)))
        assert hint in " ".join(caught.value.__notes__)


def test_a_header_without_end_is_refused() -> None:
    chunks = [b">", *[b"x" * 1000] * (LONGEST_HEADER // 1000 + 1)]
    with pytest.raises(DataError, match="f: line 1: a header of more than 1048576 bytes"):
        list(scan_fasta(chunks, "f"))


def test_headers_know_their_lines() -> None:
    events = scan_fasta([b"\n>a x\r", b"\nAC\r\nGT\r\n;c\r\n>", b"b\n>c\n"], "f")
    assert [event.line for event in events if isinstance(event, Header)] == [2, 6, 7]


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.fa", "cannot be read: No such file or directory"), ("", "is a folder, not a file of sequences")],
)
def test_paths_that_are_no_files(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError) as caught:
        list(read_fasta(path))
    assert str(caught.value) == f"{path}: {message}"


def test_many_marks_in_one_chunk_take_linear_time() -> None:
    data = b">a;b>c\n;x\n;>\nA\n" * 200_000
    assert sum(isinstance(event, Header) for event in scan_fasta([data], "f")) == 200_000
