"""Sequences with a label each, and which of them are for training, validation and test.

Either one table with the columns sequence and label, or a file of sequences and a table of names and labels. Where no
column `split` says otherwise, a sequence's part is chosen by a hash of it; a sequence and its reverse complement are
one, so that nothing that is tested was trained on. Knows nothing of what labels mean.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from data.errors import DataError
from data.lines import open_table
from data.pieces import shown
from data.reader import read_records
from data.sequence import ALLOWED_TEXT, ALPHABET, reverse_complement, to_upper_dna
from data.store import Split

_SPLITS = {"train": Split.TRAIN, "valid": Split.VALID, "validation": Split.VALID, "dev": Split.VALID}
_SPLITS |= {"test": Split.TEST}
_NAMES = ("name", "id", "record")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A sequence, upper-case DNA, its label as it is written, and its part; None leaves that to `split_examples`."""

    name: str
    sequence: bytes
    label: str
    split: Split | None


def read_examples(
    sequences: Path, labels: Path | None = None, told: Callable[[str], None] = lambda _: None
) -> list[Example]:
    """Read labelled sequences.

    Args:
        sequences: without `labels`, a table, plain or gzip, tab- or comma-separated: columns `sequence`, `label` and,
            if they are there, `name` and `split` (train, valid or test); or, without a header, a sequence and a label a
            line. With it, a file of records.
        labels: a table of `name` (or id, or record) and `label`; or a name and a label a line. Records that it does not
            have are left out.
        told: called with a sentence where records are left out.

    Raises:
        DataError: a file cannot be read; names the line and what is wrong with it.
    """
    found = list(_of_table(sequences) if labels is None else _of_records(sequences, labels, told))
    if not found:
        raise DataError(f"{labels or sequences}: no labelled sequence: the file is empty")
    return found


def _of_table(path: Path) -> Iterator[Example]:
    for number, row in _rows(path, "sequence", ("sequence", "label")):
        sequence = row["sequence"].encode()
        if not sequence:
            raise DataError(f"{path}: line {number}: the sequence is empty")
        if wrong := sequence.translate(None, ALPHABET):
            raise DataError(f"{path}: line {number}: {shown(wrong[0])} is not DNA; allowed are {ALLOWED_TEXT}").hint(
                "a line is a sequence, a tab and a label; with names in their place, give the sequences beside it"
            )
        name = next((row[key] for key in _NAMES if row.get(key)), f"line{number}")
        yield _example(path, number, row, name, sequence)


def _of_records(sequences: Path, labels: Path, told: Callable[[str], None]) -> Iterator[Example]:
    records = {}
    for record in read_records(sequences):
        if record.name in records:
            raise DataError(f"{sequences}: two records are called `{record.name}`: a label is of one")
        if not record.sequence:
            raise DataError(f"{sequences}: record `{record.name}` is empty")
        records[record.name] = record.sequence
    labelled: set[str] = set()
    for number, row in _rows(labels, "name", ("name", "label")):
        name = row["name"]
        if name not in records:
            raise DataError(f"{labels}: line {number}: there is no record `{name}` in {sequences}").hint(
                "the name of a record is what its title begins with, up to the first space"
            )
        if name in labelled:
            raise DataError(f"{labels}: line {number}: `{name}` has a label already")
        labelled.add(name)
        yield _example(labels, number, row, name, records[name])
    if others := [name for name in records if name not in labelled]:
        left = f"{len(others):,} of {len(records):,} records of {sequences}"
        told(f"{left} have no label in {labels}: `{others[0]}` first")


def _example(path: Path, number: int, row: Mapping[str, str], name: str, sequence: bytes) -> Example:
    label, split = row["label"], row.get("split", "").lower()
    if not label:
        raise DataError(f"{path}: line {number}: the label is empty")
    if split and split not in _SPLITS:
        raise DataError(f"{path}: line {number}: split must be train, valid or test, not {split!r}")
    return Example(name=name, sequence=to_upper_dna(sequence), label=label, split=_SPLITS.get(split))


def _rows(path: Path, first: str, bare: tuple[str, str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The rows of a table by column, with the numbers of their lines; `bare` are the columns of one without header."""
    try:
        with open_table(path) as stream:
            line = stream.readline()
            if line.startswith(">"):
                raise DataError(f"{path}: is FASTA, which holds no labels").hint(
                    "give a table of names and labels beside it with `--labels`"
                )
            delimiter = "\t" if "\t" in line else ","
            header = [cell.strip().lstrip("#").lower() for cell in next(csv.reader([line], delimiter=delimiter), [])]
            header = [first if cell in _NAMES and first == "name" else cell for cell in header]
            begin = 2
            if not {first, "label"} <= set(header):
                stream.seek(0)
                header, begin = list(bare), 1
            for number, row in enumerate(csv.reader(stream, delimiter=delimiter), start=begin):
                if not row:
                    continue
                if len(row) != len(header):
                    what = "the header names" if begin == 2 else "without a header there are"
                    raise DataError(f"{path}: line {number}: {len(row)} columns, {what} {len(header)}").hint(
                        f"name the columns in the first line: {bare[0]}, label and, if you like, split"
                    )
                yield number, {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from error


def split_examples(
    examples: Sequence[Example], *, valid: float, test: float, seed: int = 0
) -> dict[Split, list[Example]]:
    """Examples by part: as their table says or, if none says, these shares of the distinct sequences.

    Raises:
        DataError: some have a part and some have none, the shares leave nothing to train on, or a part is empty that
            is needed.
    """
    given = [example for example in examples if example.split is not None]
    if given and len(given) < len(examples):
        other = next(example for example in examples if example.split is None)
        raise DataError(f"`{other.name}` has no split, and {len(given)} others have").hint("give all one, or none")
    if not 0 <= valid < 1 or not 0 <= test < 1 or valid + test >= 1:
        raise DataError(f"shares of {valid} for validation and {test} for test leave nothing to train on")
    parts: dict[Split, list[Example]] = {split: [] for split in Split}
    chosen = {} if given else _choose(examples, valid, test, seed)
    for example in examples:
        split = example.split if example.split is not None else chosen[_key(example.sequence, seed)]
        parts[split].append(example)
    for split in (Split.TRAIN, Split.VALID):
        if not parts[split]:
            raise DataError(f"no example is for {split.value}, of {len(examples)}").hint(
                "give more, a larger share, or a column `split` with train, valid and test"
            )
    return parts


def _choose(examples: Sequence[Example], valid: float, test: float, seed: int) -> dict[bytes, Split]:
    keys = sorted({_key(example.sequence, seed) for example in examples})
    tests = round(test * len(keys))
    valids = round(valid * len(keys))
    parts = [Split.TEST] * tests + [Split.VALID] * valids + [Split.TRAIN] * (len(keys) - tests - valids)
    return dict(zip(keys, parts, strict=True))


def _key(sequence: bytes, seed: int) -> bytes:
    one = min(sequence, reverse_complement(sequence))
    return blake2b(one, digest_size=16, key=str(seed).encode()).digest()
