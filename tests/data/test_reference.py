"""References: every way of reading gives the same bases, and a wrong index is not believed."""

import gzip
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyfaidx
import pysam
import pytest

from data import reference as reference_module
from data.errors import DataError
from data.reference import Reference

CONTIGS = {"chr1": "ACGTNacgtnRYU" * 30, "two": "G", "MT": "TTTTACGT" * 11, "HLA:1*2": "acgt" * 15}


def fasta(contigs: dict[str, str], width: int = 60, end: str = "\n") -> bytes:
    lines = [
        line
        for name, sequence in contigs.items()
        for line in [f">{name} some words", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    ]
    return (end.join(lines) + end).encode()


def bgzip(path: Path, data: bytes) -> Path:
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(data)
    return path


def plain(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(reference_module, "_BLOCK", 64)
    monkeypatch.setattr(reference_module, "_BLOCKS_KEPT", 2)
    return folder


def check(made: Reference, contigs: dict[str, str]) -> None:
    assert made.contigs == {name: len(sequence) for name, sequence in contigs.items()}
    assert list(made.contigs) == list(contigs)
    rng = random.Random(0)
    for name, sequence in contigs.items():
        spans = [(0, len(sequence)), (0, 0), (len(sequence), len(sequence)), (64, 64), (64, 128), (63, 65)]
        spans += [(a, rng.randint(a, len(sequence))) for a in (rng.randint(0, len(sequence)) for _ in range(40))]
        for start, end in spans:
            if end <= len(sequence):
                assert made.fetch(name, start, end).decode() == sequence[start:end]


WAYS: dict[str, tuple[str, Callable[[Path, bytes], Path], bytes, int, bool]] = {
    "whole": ("r.fa", plain, fasta(CONTIGS), 1 << 20, False),
    "indexed": ("r.fa", plain, fasta(CONTIGS), 0, True),
    "indexed, one line": ("r.fa", plain, fasta(CONTIGS, 10**6), 0, True),
    "indexed, CRLF": ("r.fa", plain, fasta(CONTIGS, 60, "\r\n"), 0, True),
    "indexed, no final newline": ("r.fa", plain, fasta(CONTIGS)[:-1], 0, True),
    "bgzip": ("r.fa.gz", bgzip, fasta(CONTIGS), 0, True),
    "bgzip, whole": ("r.fa.gz", bgzip, fasta(CONTIGS), 1 << 20, False),
    "bgzip by another name": ("r.fa", bgzip, fasta(CONTIGS), 0, False),
    "gzip": ("r.fa.gz", plain, gzip.compress(fasta(CONTIGS)), 0, False),
    "plain by the name of gzip": ("r.fa.gz", plain, fasta(CONTIGS), 0, False),
    "uneven lines": (
        "r.fa",
        plain,
        fasta(CONTIGS).replace(b"G\n", b"G\n\n").replace(b"NacgtnRY", b"Nac\ngtnRY"),
        0,
        False,
    ),
    "CR only": ("r.fa", plain, fasta(CONTIGS, 60, "\r"), 0, False),
    "comments": ("r.fa", plain, fasta(CONTIGS).replace(b">two", b";note\n>two"), 0, False),
    "space before the name": ("r.fa", plain, fasta(CONTIGS).replace(b">", b"> "), 0, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_gives_the_same_bases(tmp_path: Path, way: str) -> None:
    name, write, data, read_whole, indexed = WAYS[way]
    folder = tmp_path / "genome"
    folder.mkdir()
    path = write(folder / name, data)
    for _ in range(2):  # the second time the index of the first is there
        with Reference(path, read_whole=read_whole) as made:
            check(made, CONTIGS)
            assert (made.note is None) == (indexed or read_whole > 0)
    assert list(folder.iterdir()) == [path], "nothing is written beside the data"


def test_the_note_says_what_to_do(tmp_path: Path) -> None:
    path = plain(tmp_path / "r.fa.gz", gzip.compress(b">a\nACGT\n"))
    assert Reference(path, read_whole=0).note == (
        f"{path}: cannot be read at random, so all 4 bases are held in memory;"
        " plain or bgzip FASTA with lines of one length would not need that"
    )


def indexes(cache: Path) -> set[str]:
    return {path.suffix for path in cache.rglob("*") if path.is_file()}


def test_a_good_index_beside_the_file_is_used(tmp_path: Path, cache: Path) -> None:
    path = plain(tmp_path / "r.fa", fasta(CONTIGS))
    pysam.faidx(str(path))
    check(Reference(path, read_whole=0), CONTIGS)
    zipped = bgzip(tmp_path / "z.fa.gz", fasta(CONTIGS))
    pyfaidx.Faidx(str(zipped)).close()
    check(Reference(zipped, read_whole=0), CONTIGS)
    assert indexes(cache) == set()


GOOD = "chr1\t390\t17\t60\t61\ntwo\t1\t430\t1\t2\nMT\t88\t447\t60\t61\nHLA:1*2\t60\t557\t60\t61\n"


def test_the_index_that_the_wrong_ones_are_made_from(tmp_path: Path) -> None:
    path = plain(tmp_path / "r.fa", fasta(CONTIGS))
    pysam.faidx(str(path))
    assert (tmp_path / "r.fa.fai").read_text() == GOOD


@pytest.mark.parametrize(
    "index",
    [
        "this is not a valid fasta index!!!!!!\n",
        "",
        GOOD.replace("chr1", "chrX"),
        GOOD.replace("390\t17", "389\t17"),
        GOOD.replace("390\t17", "390\t18"),
        GOOD.replace("390\t17\t60\t61", "390\t17\t59\t60"),
        GOOD.replace("88\t447\t60\t61", "88\t447\t50\t51"),
        GOOD.replace("88\t447", "10000000\t447"),
        GOOD.replace("88\t447", "88\t-447"),
        "".join(GOOD.splitlines(keepends=True)[:3]),
        "".join(GOOD.splitlines(keepends=True)[1:]),
        GOOD + "ghost\t10\t700\t60\t61\n",
    ],
)
def test_a_wrong_index_beside_the_file_is_not_believed(tmp_path: Path, cache: Path, index: str) -> None:
    path = plain(tmp_path / "r.fa", fasta(CONTIGS))
    beside = plain(tmp_path / "r.fa.fai", index.encode())
    check(Reference(path, read_whole=0), CONTIGS)
    assert beside.read_text() == index
    assert indexes(cache) == {".fai"}


def test_a_stale_index_beside_the_file_is_not_believed(tmp_path: Path, cache: Path) -> None:
    path = plain(tmp_path / "r.fa", fasta(CONTIGS))
    pysam.faidx(str(path))
    changed = CONTIGS | {"two": "GATTACA"}
    plain(path, fasta(changed))
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))
    check(Reference(path, read_whole=0), changed)
    assert indexes(cache) == {".fai"}


def test_a_wrong_bgzip_index_is_not_believed(tmp_path: Path, cache: Path) -> None:
    path = bgzip(tmp_path / "r.fa.gz", fasta(CONTIGS))
    plain(tmp_path / "r.fa.gz.fai", GOOD.encode())
    plain(tmp_path / "r.fa.gz.gzi", b"\x01\x00\x00\x00\x00\x00\x00\x00")
    check(Reference(path, read_whole=0), CONTIGS)
    assert indexes(cache) == {".fai", ".gzi"}


def test_a_changed_file_gets_a_new_index(tmp_path: Path) -> None:
    path = plain(tmp_path / "r.fa", fasta(CONTIGS))
    check(Reference(path, read_whole=0), CONTIGS)
    changed = {"other": "ACGT" * 100}
    plain(path, fasta(changed))
    check(Reference(path, read_whole=0), changed)


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(plain(tmp_path / "a_file", b"")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Reference(plain(tmp_path / "r.fa", fasta(CONTIGS)), read_whole=0)
    check(made, CONTIGS)
    assert made.note is None
    assert indexes(tmp_path) == {"", ".fa", ".fai"}


@pytest.mark.parametrize("read_whole", [0, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b">a x\nAC\n>b\nA\n>a y\nGT\n", "two contigs are named 'a'"),
        (b"", "is empty"),
        (b"ACGT\n", "stands before the first '>' header"),
        (gzip.compress(fasta(CONTIGS))[:-20], "r.fa: the gzip data end before they should: the file is truncated"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, message: str, read_whole: int) -> None:
    with pytest.raises(DataError) as caught:
        Reference(plain(tmp_path / "r.fa", data), read_whole=read_whole)
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.fa: cannot be read: No such file"):
        Reference(tmp_path / "none.fa")


@pytest.mark.parametrize("read_whole", [0, 1 << 20])
def test_a_bgzip_file_cut_between_two_blocks_is_refused(tmp_path: Path, read_whole: int) -> None:
    path = bgzip(tmp_path / "r.fa.gz", fasta(CONTIGS))
    path.write_bytes(path.read_bytes()[:-28])
    with pytest.raises(DataError, match=r"r\.fa\.gz: the bgzip end marker is missing: the file is truncated"):
        Reference(path, read_whole=read_whole)


@pytest.mark.parametrize("data", [fasta(CONTIGS), gzip.compress(fasta(CONTIGS))])
def test_standard_input(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(data)

    monkeypatch.setattr("sys.stdin", Stdin)
    check(Reference("-"), CONTIGS)


def test_odd_letters_do_not_keep_the_rest_from_being_read(tmp_path: Path) -> None:
    path = plain(tmp_path / "r.fa", b">a\nACZ*-T\n>b\nAC GT\n")
    check(Reference(path), {"a": "ACZ*-T", "b": "ACGT"})


def test_genbank(tmp_path: Path) -> None:
    text = "LOCUS       X1   8 bp    DNA\nACCESSION   X1\nVERSION     X1.1\nORIGIN\n        1 acgtacgt\n//\n"
    made = Reference(plain(tmp_path / "r.gb", text.encode()), read_whole=0)
    assert [*made.contigs.values()] == [8]
    assert made.fetch(next(iter(made.contigs)), 2, 5).upper() == b"GTA"


def test_lines_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path / "r.fa", fasta(CONTIGS))
    for size in (1, 2, 3, 7, 61, 64):
        monkeypatch.setattr("data.source.Source.chunks", _chunks_of(path, size))
        check(Reference(path), CONTIGS)


def _chunks_of(path: Path, size: int) -> Callable[..., Iterator[bytes]]:
    data = path.read_bytes()
    return lambda *_: (data[i : i + size] for i in range(0, len(data), size))


@pytest.mark.parametrize(
    ("contigs", "name", "found"),
    [
        ("chr1 chr2 chrM", "chr1", "chr1"),
        ("chr1 chr2 chrM", "1", "chr1"),
        ("1 2 MT", "chr2", "2"),
        ("1 2 MT", "chrM", "MT"),
        ("1 2 MT", "M", "MT"),
        ("chr1 chrM", "MT", "chrM"),
        ("chr1 chrM", "chrMT", "chrM"),
        ("1 chr1", "1", "1"),
        ("1 chr1", "chr1", "chr1"),
        ("chr1", "2", None),
        ("chr1", "CHR1", None),
        ("chr1", "chrM", None),
        ("chr1", "chr", None),
        ("1:2-501", "1", None),
    ],
)
def test_resolve(tmp_path: Path, contigs: str, name: str, found: str | None) -> None:
    path = plain(tmp_path / "r.fa", fasta(dict.fromkeys(contigs.split(), "ACGT")))
    assert Reference(path).resolve(name) == found


@pytest.mark.parametrize("read_whole", [0, 1 << 20])
@pytest.mark.parametrize(
    ("contig", "start", "end", "message"),
    [
        ("1", 0, 1, "no contig '1' among its 4"),
        ("chr1", -1, 2, "bases -1 to 2 are not within contig 'chr1' of 390 bp"),
        ("chr1", 5, 4, "bases 5 to 4 are not within contig 'chr1' of 390 bp"),
        ("chr1", 0, 391, "bases 0 to 391 are not within contig 'chr1' of 390 bp"),
    ],
)
def test_fetch_refuses(tmp_path: Path, contig: str, start: int, end: int, message: str, read_whole: int) -> None:
    made = Reference(plain(tmp_path / "r.fa", fasta(CONTIGS)), read_whole=read_whole)
    with pytest.raises(DataError) as caught:
        made.fetch(contig, start, end)
    assert message in str(caught.value)


@pytest.mark.parametrize("odd", ["A C", " AC", "AC ", "A\tC"])
def test_white_space_in_lines(tmp_path: Path, odd: str) -> None:
    path = plain(tmp_path / "r.fa", fasta({"a": odd, "b": "ACGT"}))
    assert Reference(path).fetch("a", 0, 2) == b"AC"
    indexed = Reference(path, read_whole=0)
    assert indexed.fetch("b", 0, 4) == b"ACGT"
    if indexed.contigs["a"] != 2:
        with pytest.raises(DataError, match=r"r\.fa: contig 'a': white space within the sequence"):
            indexed.fetch("a", 0, 2)


def test_a_damaged_block_is_an_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = bgzip(tmp_path / "r.fa.gz", fasta({"a": "".join(rng.choices("ACGT", k=400_000))}))
    Reference(path, read_whole=0).close()
    time = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[60_000:60_400] = bytes(400)
    path.write_bytes(data)
    os.utime(path, ns=(time, time))
    made = Reference(path, read_whole=0)
    assert made.note is None
    with pytest.raises(DataError, match=r"contig 'a': bases \d+ to \d+ cannot be read"):
        made.fetch("a", 0, 400_000)
