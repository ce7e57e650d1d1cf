"""From files to a token store: what is in it, what splits it, what is left alone."""

import gzip
import hashlib
import os
import random
import stat
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.fasta import read_fasta
from data.prepare import PrepareOptions, PrepareReport, prepare
from data.sequence import to_upper_dna
from data.splits import SplitBy
from data.store import Split, TokenStore

COUNTS = {
    "records": 0, "bases": 0, "tokens": 0, "skipped_bases": 0, "skipped_bases_short": 0, "skipped_records_short": 0,
    "skipped_records_empty": 0, "masked_bases_ambiguous": 0, "lower_case_bases": 0, "converted_bases_u": 0,
}  # fmt: skip


def bases(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=count))


def write(path: Path, *records: tuple[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{title}\n{sequence}\n" for title, sequence in records))
    return path


def make(folder: Path, *inputs: Path, name: str = "store.h5", **options: object) -> PrepareReport:
    return prepare(list(inputs), folder / name, PrepareOptions(**options))  # type: ignore[arg-type]


def by_split(path: Path) -> dict[str, set[tuple[str, str]]]:
    """The segments of every split as (name of the record, bases)."""
    with TokenStore(path) as store:
        names = list(store.records.names)
        return {
            split.value: {
                (names[row["record"]], store.read(row["start"], row["end"]).tobytes().decode())
                for row in store.segments(split)
            }
            for split in Split
        }


def many_records(count: int) -> list[tuple[str, str]]:
    return [(f"r{index}", bases(30 + index % 50, index)) for index in range(count)]


def test_what_is_in_a_store(tmp_path: Path) -> None:
    first = write(tmp_path / "a.fa", ("one first of all", "ACGTacgtNNrU"), ("empty", ""), ("", "uuGG"))
    second = tmp_path / "b.fa.gz"
    second.write_bytes(gzip.compress(b">two\nACG\n>short\nAC\n>two\nTTT"))
    report = make(tmp_path, first, second, min_length=3)
    expected = COUNTS | {
        "records": 4, "bases": 22, "tokens": 26, "skipped_bases": 2, "skipped_bases_short": 2,
        "skipped_records_short": 1, "skipped_records_empty": 1, "masked_bases_ambiguous": 3, "lower_case_bases": 7,
        "converted_bases_u": 3,
    }  # fmt: skip
    assert dict(report.rows()).items() >= expected.items()
    assert [what for what, _ in report.rows()][: len(COUNTS)] == list(COUNTS)
    with TokenStore(report.output) as store:
        tokens = b"ACGTacgtNNrT\0ttGG\0ACG\0TTT\0"
        assert store.tokens[:].tobytes() == tokens
        assert store.checksum == report.checksum == hashlib.sha256(tokens).hexdigest()
        store.load()
        assert list(store.records.names) == ["one", "", "two", "two"]
        assert list(store.records.descriptions) == ["first of all", "", "", ""]
        assert store.records.offsets.tolist() == [0, 13, 18, 22]
        assert store.records.lengths.tolist() == [12, 4, 3, 3]
        assert store.records.sources.tolist() == [0, 0, 1, 1]
        assert store.records.tags.tolist() == [-1] * 4
        contents = [b"ACGTACGTNNRT", b"TTGG", b"ACG", b"TTT"]
        hashes = [hashlib.blake2b(text, digest_size=16).digest() for text in contents]
        assert [row.tobytes() for row in store.records.hashes] == hashes
        for source, path in zip(store.metadata["sources"], (first, second), strict=True):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert source == {"path": str(path), "size": path.stat().st_size, "sha256": digest}
        assert store.metadata["options"]["min_length"] == 3
        assert store.metadata["counts"] == dict(report.rows())


def test_segments_cover_every_record_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ("a", bases(70_000, 1)), ("b", bases(9_999, 2)), ("c", "A"))
    report = make(tmp_path, path, valid=0.2, test=0.1, region_length=1024)
    counts = dict(report.rows())
    with TokenStore(report.output) as store:
        assert store.metadata["split_by"] == "region"
        assert store.metadata["region_length"] == 1024
        parts = np.sort(np.concatenate([store.segments(split) for split in Split]), order="start")
        for index, (offset, length) in enumerate(zip(store.records.offsets, store.records.lengths, strict=True)):
            own = parts[parts["record"] == index]
            assert [offset, *own["end"]] == [*own["start"], offset + length]
        for split in Split:
            rows = store.segments(split)
            assert (np.diff(rows["start"]) > 0).all()
            assert (rows["end"][:-1] < rows["start"][1:]).all(), "neighbours of one split are one segment"
            assert counts[f"{split}_segments"] == len(rows) > 0
            assert counts[f"{split}_bases"] == (rows["end"] - rows["start"]).sum()


@pytest.mark.parametrize("split_by", ["record", "auto"])
def test_splits_follow_from_content_alone(tmp_path: Path, split_by: str) -> None:
    records = many_records(300)
    options = {"split_by": SplitBy(split_by), "valid": 0.1, "test": 0.1}
    whole = make(tmp_path, write(tmp_path / "whole.fa", *records), name="whole.h5", **options)
    back, front = write(tmp_path / "b.fa", *records[150:]), write(tmp_path / "a.fa", *records[:150])
    extra = write(tmp_path / "c.fa", *[(f"x{i}", bases(40, 1000 + i)) for i in range(100)])
    parts = make(tmp_path, back, extra, front, name="parts.h5", **options)
    before, after = by_split(whole.output), by_split(parts.output)
    for split in Split:
        assert before[split] == {row for row in after[split] if row[0].startswith("r")}
        assert len(before[split]) > 10
    other = make(tmp_path, tmp_path / "whole.fa", name="other.h5", seed=1, **options)
    assert by_split(other.output)["valid"] != before["valid"]


def test_equal_sequences_never_straddle_splits(tmp_path: Path) -> None:
    records = [
        (f"{name}{index}", case(bases(35, index)).replace(*swap))
        for index in range(150)
        for name, case, swap in (("a", str.upper, ("T", "T")), ("b", str.lower, ("t", "t")), ("c", str, ("T", "U")))
    ]
    found = by_split(make(tmp_path, write(tmp_path / "a.fa", *records), valid=0.3, test=0.3).output)
    contents = [{sequence.upper() for _, sequence in found[split]} for split in Split]
    assert all(contents)
    assert sum(map(len, contents)) == len(set.union(*contents)) == 150


def test_a_split_that_would_be_empty_gets_a_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", *many_records(3))
    found = by_split(make(tmp_path, path, split_by=SplitBy.RECORD, valid=0.0001, test=0.0001).output)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "valid": 1, "test": 1}


def test_a_split_that_must_be_empty_is_told(tmp_path: Path) -> None:
    report = make(tmp_path, write(tmp_path / "a.fa", ("a", bases(99, 0))), split_by=SplitBy.RECORD)
    assert report.warnings == ("the valid split is empty: too few records that differ",)
    assert dict(report.rows())["train_bases"] == 99


def test_tags(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ("x", "ACGT"), ("y", "GGGG"), ("z", "TTTT"), ("x", "CCCC"))
    tags = tmp_path / "tags.tsv"
    tags.write_text("note\trecord\ttag\n-\tx\t|d__Bacteria|\n\n-\tz\t|d__Archaea;s__A b|\n-\tw\t|d__Bacteria|\n")
    report = make(tmp_path, path, tags=tags, split_by=SplitBy.RECORD, valid=0.25)
    assert report.warnings == ("1 record(s) of the tag file are not in the store: 'w'",)
    expected = {"x": "|d__Bacteria|", "y": "", "z": "|d__Archaea;s__A b|"}
    with TokenStore(report.output) as store:
        names = list(store.records.names)
        rows = np.concatenate([store.segments(split) for split in Split])
        assert len(rows) == 4
        for row in rows:
            tag = store.tags[row["tag_start"] : row["tag_end"]].tobytes().decode()
            assert tag == expected[names[row["record"]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record\ttaxon\nx\t|d|\n", "line 1: no column 'tag'; the columns are ['record', 'taxon']"),
        ("", "line 1: no column 'record'; the columns are []"),
        ("record\ttag\nx\t|d|\nx\t|e|\n", "line 3: record 'x' has a tag already"),
        ("record\ttag\nx\td__Bacteria\n", "line 2: 'd__Bacteria' is not a tag: printable ASCII between bars"),
        ("record\ttag\nx\t|dé|\n", "line 2: '|dé|' is not a tag: printable ASCII between bars"),
        ("record\ttag\nx\n", "line 2: 1 columns, the header has 2"),
    ],
)
def test_tag_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    tags = tmp_path / "tags.tsv"
    tags.write_text(text)
    with pytest.raises(DataError) as caught:
        make(tmp_path, write(tmp_path / "a.fa", ("x", "ACGT")), tags=tags)
    assert str(caught.value) == f"{tags}: {message}"
    assert not (tmp_path / "store.h5").exists()


def test_folders_patterns_and_repeats(tmp_path: Path) -> None:
    one = write(tmp_path / "in" / "b" / "one.fna", ("one", "ACGT"))
    write(tmp_path / "in" / "a" / "two.fasta.gz", ("two", "ACGG"))
    write(tmp_path / "in" / "three.fa", ("three", "ACGC"))
    write(tmp_path / "in" / "notes.txt", ("no", "AAAA"))
    write(tmp_path / "in" / ".hidden" / "x.fa", ("no", "AAAA"))
    report = make(tmp_path, tmp_path / "in", Path(f"{tmp_path}/in/*/on*"))
    with TokenStore(report.output) as store:
        assert list(store.records.names) == ["three", "two", "one"]
    assert report.warnings == (f"{one}: given more than once, read once",)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input file"),
        (["missing.fa"], "missing.fa: no such file or folder"),
        (["*.fa"], "*.fa: no file matches this pattern"),
        (["empty"], "empty: no file of sequences in this folder"),
    ],
)
def test_inputs_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        make(tmp_path, *map(Path, inputs))
    assert str(caught.value) == message


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ("a", bases(5000, 3)))
    first = make(tmp_path, path)
    assert not first.unchanged
    stamp = first.output.stat()
    again = make(tmp_path, path)
    assert again.unchanged
    assert (again.rows(), again.checksum, again.warnings) == (first.rows(), first.checksum, first.warnings)
    assert (first.output.stat().st_mtime_ns, first.output.stat().st_ino) == (stamp.st_mtime_ns, stamp.st_ino)


@pytest.mark.parametrize("change", ["bases", "options", "files", "force"])
def test_a_run_on_something_else_is_done(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "a.fa", ("a", bases(5000, 3)))
    make(tmp_path, path)
    if change == "bases":
        write(path, ("a", bases(5000, 4)))
    more = [write(tmp_path / "b.fa", ("b", "ACGT"))] if change == "files" else []
    options = {"options": {"seed": 9}, "force": {"force": True}}.get(change, {})
    assert not make(tmp_path, path, *more, **options).unchanged


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", *many_records(200))
    first, second = (make(tmp_path, path, name=name).output.read_bytes() for name in ("one.h5", "two.h5"))
    assert first == second


def test_a_failed_run_leaves_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.fa", ("a", "ACGT")), write(tmp_path / "bad.fa", ("p", "ACGE"))
    with pytest.raises(DataError, match=r"bad\.fa: line 2: record 'p': 'E' is not DNA"):
        make(tmp_path, good, bad)
    assert sorted(os.listdir(tmp_path)) == ["bad.fa", "good.fa"]
    store = make(tmp_path, good).output
    before = store.read_bytes()
    with pytest.raises(DataError, match="is not DNA"):
        make(tmp_path, good, bad)
    assert store.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["bad.fa", "good.fa", "store.h5"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    path = write(tmp_path / "a.fa", ("a", "ACGT"))
    with pytest.raises(KeyboardInterrupt):
        prepare([path], tmp_path / "store.h5", PrepareOptions(), interrupt)
    assert os.listdir(tmp_path) == ["a.fa"]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".store.h5.abc.partial").write_bytes(b"left")
    (tmp_path / ".other.h5.abc.partial").write_bytes(b"not ours")
    make(tmp_path, write(tmp_path / "a.fa", ("a", "ACGT")))
    assert sorted(os.listdir(tmp_path)) == [".other.h5.abc.partial", "a.fa", "store.h5"]


def test_the_mode_of_the_store_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        report = make(tmp_path, write(tmp_path / "a.fa", ("a", "ACGT")))
    finally:
        os.umask(old)
    assert stat.S_IMODE(report.output.stat().st_mode) == 0o640


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ("a", "ACGT"))
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    with pytest.raises(DataError, match=r"notes\.txt: exists and is not a token store"):
        make(tmp_path, path, name="notes.txt")
    assert notes.read_text() == "precious"
    assert not make(tmp_path, path, name="notes.txt", force=True).unchanged
    with pytest.raises(DataError, match=r"a\.fa: is the output and an input too"):
        make(tmp_path, path, name="a.fa", force=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: exists and is not a file"):
        make(tmp_path, path, name="folder", force=True)
    with pytest.raises(DataError, match=r"x\.h5: cannot be written: No such file or directory"):
        make(tmp_path, path, name="nowhere/x.h5")


def test_nothing_to_store(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ("a", "ACGT"), ("b", ""))
    with pytest.raises(DataError) as caught:
        make(tmp_path, path, min_length=5)
    assert str(caught.value) == (
        "nothing to store: no record of 5 bases or more in 1 file(s); skipped 1 empty and 1 short record(s)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid": -0.1}, "valid is -0.1; allowed is 0 up to, not including, 1"),
        ({"test": 1.0}, "test is 1.0; allowed is 0 up to, not including, 1"),
        ({"valid": 0.5, "test": 0.5}, "valid and test are 0.5 and 0.5; together they must stay below 1"),
        ({"seed": -1}, r"seed is -1; allowed is 0 to 2**64 - 1"),
        ({"region_length": 10}, "region_length is 10; allowed is 1024 or more"),
        ({"min_length": 0}, "min_length is 0; allowed is 1 to 10000000"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError) as caught:
        PrepareOptions(**options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.fa", ("a", bases(3000, 1))) for name in "ab"]
    seen: list[tuple[int, int]] = []
    prepare(paths, tmp_path / "store.h5", PrepareOptions(), lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in paths)
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_a_store_holds_what_the_reader_reads(tmp_path: Path) -> None:
    records = [(f"s{i} about {i}", bases(i * 37 % 5000, i)) for i in range(400)]
    path = write(tmp_path / "a.fa", *records)
    expected = [(r.name, r.description, to_upper_dna(r.sequence)) for r in read_fasta(path) if r.sequence]
    with TokenStore(make(tmp_path, path).output) as store:
        index = store.records
        found = [
            (name, description, store.read(offset, offset + length).tobytes())
            for name, description, offset, length in zip(
                index.names, index.descriptions, index.offsets, index.lengths, strict=True
            )
        ]
    assert found == expected
