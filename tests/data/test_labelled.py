"""Labelled sequences: what is read, what is refused, and that no sequence is in two parts."""

import gzip
import random

import pytest

from data.errors import DataError
from data.labelled import Example, read_examples, split_examples
from data.sequence import reverse_complement
from data.store import Split


def written(path, text):
    path.write_text(text)
    return path


TABLES = {
    "bare": "ACGT\tyes\nGGuu\tno\n",
    "header": "sequence\tlabel\nACGT\tyes\nGGTT\tno\n",
    "columns in any order, and others": "label,extra,sequence\nyes,1,ACGT\nno,2,GGTT\n",
    "blank lines and Windows ends": "sequence\tlabel\r\nacgt\tyes\r\n\r\nGGTT\tno\r\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_a_table_gives_sequences_and_labels(tmp_path, text):
    examples = read_examples(written(tmp_path / "t.tsv", text))

    assert [(example.sequence, example.label) for example in examples] == [(b"ACGT", "yes"), (b"GGTT", "no")]


def test_a_table_may_be_zipped_and_say_names_and_parts(tmp_path):
    with gzip.open(tmp_path / "t.tsv.gz", "wt") as stream:
        stream.write("id\tsequence\tlabel\tsplit\na\tACGT\t1.5\ttrain\nb\tACGA\t2\tdev\nc\tACCA\t2\tTEST\n")

    assert read_examples(tmp_path / "t.tsv.gz") == [
        Example(name="a", sequence=b"ACGT", label="1.5", split=Split.TRAIN),
        Example(name="b", sequence=b"ACGA", label="2", split=Split.VALID),
        Example(name="c", sequence=b"ACCA", label="2", split=Split.TEST),
    ]


@pytest.mark.parametrize("header", ["", "name\tlabel\n", "ID\tlabel\n"])
def test_records_have_their_labels_by_name(tmp_path, header):
    fasta = written(tmp_path / "s.fa", ">a one\nACGT\n>b\nGG\nTT\n>unlabelled\nAC\n")
    labels = written(tmp_path / "l.tsv", f"{header}b\tno\na\tyes\n")

    told = []
    examples = read_examples(fasta, labels, told.append)

    assert [(one.name, one.sequence, one.label) for one in examples] == [("b", b"GGTT", "no"), ("a", b"ACGT", "yes")]
    assert told == [f"1 of 3 records of {fasta} have no label in {labels}: `unlabelled` first"]


BAD_TABLES = {
    "ACGT\tyes\nACXT\tno\n": r"t\.tsv: line 2: 'X' is not DNA; allowed are ACGT",
    "sequence\tlabel\nACGT\n": r"t\.tsv: line 2: 1 columns, the header names 2",
    "ACGT\tyes\tmore\n": r"t\.tsv: line 1: 3 columns, without a header there are 2",
    "sequence\tlabel\n\tyes\n": r"t\.tsv: line 2: the sequence is empty",
    "ACGT\t\n": r"t\.tsv: line 1: the label is empty",
    "sequence\tlabel\tsplit\nACGT\tyes\tmaybe\n": r"line 2: split must be train, valid or test, not 'maybe'",
    "": r"t\.tsv: no labelled sequence: the file is empty",
    "sequence\tlabel\n": r"t\.tsv: no labelled sequence",
}


@pytest.mark.parametrize(("text", "message"), BAD_TABLES.items(), ids=range(len(BAD_TABLES)))
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_examples(written(tmp_path / "t.tsv", text))


@pytest.mark.parametrize(
    ("fasta", "labels", "message"),
    [
        (">a\nACGT\n", "b\t1\n", r"l\.tsv: line 1: there is no record `b` in .*s\.fa"),
        (">a\nACGT\n", "a\t1\na\t2\n", r"l\.tsv: line 2: `a` has a label already"),
        (">a\nACGT\n>a\nAA\n", "a\t1\n", r"s\.fa: two records are called `a`"),
    ],
)
def test_what_is_wrong_with_names_is_said(tmp_path, fasta, labels, message):
    with pytest.raises(DataError, match=message):
        read_examples(written(tmp_path / "s.fa", fasta), written(tmp_path / "l.tsv", labels))


def test_a_binary_file_is_no_table(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"\x1f\x8bnothing")

    with pytest.raises(DataError, match=r"t\.tsv: cannot be read as a table"):
        read_examples(tmp_path / "t.tsv")


def example(sequence, split=None):
    return Example(name="n", sequence=sequence, label="1", split=split)


def test_shares_are_of_distinct_sequences_and_no_strand_is_in_two_parts():
    rng = random.Random(0)
    once = [bytes(rng.choices(b"ACGT", k=30)) for _ in range(200)]
    examples = [example(one) for one in [*once, *once[:50], *map(reverse_complement, once)]]

    parts = split_examples(examples, valid=0.1, test=0.2, seed=1)

    both = {
        split: {min(one.sequence, reverse_complement(one.sequence)) for one in part} for split, part in parts.items()
    }
    assert {split: len(found) for split, found in both.items()} == {Split.TRAIN: 140, Split.VALID: 20, Split.TEST: 40}
    assert sum(map(len, parts.values())) == len(examples)
    again = split_examples(examples[::-1], valid=0.1, test=0.2, seed=1)
    assert {one.sequence for one in again[Split.TEST]} == {one.sequence for one in parts[Split.TEST]}
    other = split_examples(examples, valid=0.1, test=0.2, seed=2)
    assert {one.sequence for one in other[Split.TEST]} != {one.sequence for one in parts[Split.TEST]}


def test_parts_that_are_given_are_kept():
    examples = [example(b"A", Split.TEST), example(b"C", Split.TRAIN), example(b"G", Split.VALID)]

    parts = split_examples(examples, valid=0.5, test=0.2)

    assert {split: [one.sequence for one in part] for split, part in parts.items()} == {
        Split.TRAIN: [b"C"],
        Split.VALID: [b"G"],
        Split.TEST: [b"A"],
    }


@pytest.mark.parametrize(
    ("examples", "shares", "message"),
    [
        ([example(b"A", Split.TRAIN), example(b"C")], (0.1, 0.1), "`n` has no split, and 1 others have"),
        ([example(b"A")], (0.5, 0.5), "shares of 0.5 for validation and 0.5 for test leave nothing to train on"),
        ([example(b"A"), example(b"C")], (0.1, 0.1), "no example is for valid, of 2"),
        ([example(b"A", Split.TEST)], (0.1, 0.1), "no example is for train, of 1"),
    ],
)
def test_parts_that_cannot_be_are_refused(examples, shares, message):
    with pytest.raises(DataError, match=message):
        split_examples(examples, valid=shares[0], test=shares[1])
