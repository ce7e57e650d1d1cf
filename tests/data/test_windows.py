"""Windows against documents joined by hand; the ring of an epoch is read off in one window as long as itself."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.permutation import Permutation, mix, mix_range
from data.prepare import PrepareOptions, prepare
from data.sequence import reverse_complement
from data.store import SEGMENT, Split, TokenStore
from data.windows import Batch, WindowOptions, Windows


@dataclass
class MemoryStore:
    """What Windows needs of a TokenStore, in memory: records (tag, bases) and segments made of whole records."""

    records: list[tuple[bytes, bytes]]
    path: Path = Path("memory.h5")
    tokens: np.ndarray = field(init=False)
    tags: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = np.frombuffer(b"".join(bases + b"\0" for _, bases in self.records), dtype=np.uint8)
        self.tags = np.frombuffer(b"".join(tag for tag, _ in self.records), dtype=np.uint8)
        self._table = np.zeros(len(self.records), dtype=SEGMENT)
        token, letter = 0, 0
        for i, (tag, bases) in enumerate(self.records):
            self._table[i] = (i, token, token + len(bases), letter, letter + len(tag))
            token, letter = token + len(bases) + 1, letter + len(tag)

    def segments(self, split: str) -> np.ndarray:
        return self._table if split == "train" else self._table[:0]

    def read(self, start: int, end: int) -> np.ndarray:
        return self.tokens[start:end]

    def load(self) -> np.ndarray:
        return self.tokens


RECORDS = st.lists(
    st.tuples(st.sampled_from([b"", b"|d__Aca|", b"acgt"]), st.binary(min_size=1, max_size=30).map(lambda raw: bytes(
        b"ACGTacgtNnRy"[b % 12] for b in raw
    ))),
    min_size=1,
    max_size=8,
)  # fmt: skip


def windows(records: list[tuple[bytes, bytes]], length: int, **options: object) -> Windows:
    return Windows(MemoryStore(records), "train", WindowOptions(length=length, **options))  # type: ignore[arg-type]


def document(tag: bytes, bases: bytes, low: float = 0.1) -> tuple[bytes, list[float], list[bool]]:
    """Tokens, weights and starts of one document, letter by letter."""
    weight = {**dict.fromkeys(b"ACGT", 1.0), **dict.fromkeys(b"acgt", low)}
    tokens = (tag + bases).upper() + b"\0"
    return tokens, [0.0] * len(tag) + [weight.get(b, 0.0) for b in bases] + [0.0], [True] + [False] * (len(tokens) - 1)


def join(documents: list[tuple[bytes, list[float], list[bool]]]) -> list[tuple[int, float, bool]]:
    return [item for tokens, weights, starts in documents for item in zip(tokens, weights, starts, strict=True)]


def targets(batch: Batch, row: int) -> list[tuple[int, float, bool]]:
    columns = (batch.tokens[row, 1:], batch.weights[row], batch.document_starts[row, 1:])
    return [(int(t), round(float(w), 6), bool(s)) for t, w, s in zip(*columns, strict=True)]


def ring_of(made: Windows, records: list[tuple[bytes, bytes]], epoch: int) -> list[tuple[int, float, bool]]:
    length = len(join([document(*record) for record in records]))
    whole = windows(records, length, **{k: getattr(made.options, k) for k in ("seed", "reverse_complement", "shuffle")})
    assert len(whole) == 1
    return targets(whole.batch(epoch, 1), 0)


@given(records=RECORDS, length=st.integers(1, 40), count=st.integers(1, 9))
def test_in_order_the_windows_are_the_documents_end_to_end(
    records: list[tuple[bytes, bytes]], length: int, count: int
) -> None:
    made = windows(records, length, shuffle=False, reverse_complement=False)
    stream = join([document(*record) for record in records])
    assert len(made) == -(-len(stream) // length)
    padded = stream + [(1, 0.0, False)] * (len(made) * length - len(stream))
    got, previous = [], 0
    for first in range(0, len(made), count):
        batch = made.batch(first, min(count, len(made) - first))
        for row in range(len(batch.tokens)):
            assert batch.tokens[row, 0] == previous
            got += targets(batch, row)
            previous = batch.tokens[row, -1]
    assert got == padded


@settings(deadline=None)
@given(
    records=RECORDS, length=st.integers(1, 40), seed=st.integers(0, 2**64), epoch=st.integers(0, 5), rc=st.booleans()
)
def test_a_shuffled_epoch_predicts_every_token_once(
    records: list[tuple[bytes, bytes]], length: int, seed: int, epoch: int, rc: bool
) -> None:
    made = windows(records, length, seed=seed, reverse_complement=rc)
    ring = ring_of(made, records, epoch)
    padded = ring + [(1, 0.0, False)] * (len(made) * length - len(ring))
    batch = made.batch(epoch * len(made), len(made))
    expected = Counter(tuple(padded[i : i + length]) for i in range(0, len(padded), length))
    assert Counter(tuple(targets(batch, row)) for row in range(len(made))) == expected
    for row in range(len(made)):
        before = {ring[i - 1][0] for i in range(0, len(ring), length) if padded[i : i + length] == targets(batch, row)}
        assert int(batch.tokens[row, 0]) in before


@settings(deadline=None)
@given(records=RECORDS, seed=st.integers(0, 2**64), rc=st.booleans())
def test_two_epochs_read_every_segment_once_on_each_strand(
    records: list[tuple[bytes, bytes]], seed: int, rc: bool
) -> None:
    made = windows(records, 7, seed=seed, reverse_complement=rc)
    found: Counter[tuple[tuple[int, float, bool], ...]] = Counter()
    for epoch in (4, 5):
        ring = ring_of(made, records, epoch)
        first = next(i for i, item in enumerate(ring) if item[2])
        current: list[tuple[int, float, bool]] = []
        for item in ring[first:] + ring[:first]:
            current.append(item)
            if item[0] == 0:
                found[tuple(current)] += 1
                current = []
        assert current == []
    other = [(tag, reverse_complement(bases) if rc else bases) for tag, bases in records]
    assert found == Counter(tuple(join([document(*record)])) for record in records + other)


def test_batches_are_pure_functions_of_the_window_number() -> None:
    records = [(b"|tag|", b"ACGTNacgt" * 40), (b"", b"GATTACA" * 30), (b"", b"C")]
    made = windows(records, 16, seed=5)
    total = 3 * len(made) + 2
    whole = made.batch(0, total)
    for first, count in [(0, 1), (7, 5), (len(made) - 1, 3), (2 * len(made), 2), (total - 1, 1), (3, 1)]:
        part = windows(records, 16, seed=5).batch(first, count)
        again = made.batch(first, count)
        for name in ("tokens", "weights", "document_starts"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[first : first + count])
            assert np.array_equal(getattr(again, name), getattr(part, name))
    assert whole.tokens.dtype == np.uint8
    assert whole.tokens.flags.writeable
    assert whole.weights.dtype == np.float32
    assert whole.document_starts.dtype == np.bool_


def test_seeds_and_epochs_differ() -> None:
    rng = np.random.default_rng(0)
    records = [(b"", rng.choice(np.frombuffer(b"ACGT", np.uint8), size=500).tobytes()) for _ in range(4)]
    one, two = windows(records, 64, seed=1), windows(records, 64, seed=2)
    first = {row.tobytes() for row in one.batch(0, len(one)).tokens}
    assert not first & {row.tobytes() for row in one.batch(len(one), len(one)).tokens}, "cuts must move between epochs"
    assert not first & {row.tobytes() for row in two.batch(0, len(two)).tokens}


def test_a_genome_shorter_than_a_window_is_padded() -> None:
    made = windows([(b"", b"ACGTA")], 100, reverse_complement=False)
    assert len(made) == 1
    batch = made.batch(3, 1)
    assert batch.tokens[0, 7:].tolist() == [1] * 94
    assert batch.weights.sum() == 5
    assert sorted(batch.tokens[0, 1:7].tolist()) == sorted(b"ACGTA\0")


def test_the_lower_case_weight_is_a_choice() -> None:
    batch = windows([(b"", b"ACgtn")], 6, lower_case_weight=0.25, shuffle=False, reverse_complement=False).batch(0, 1)
    assert batch.weights.tolist() == [[1.0, 1.0, 0.25, 0.25, 0.0, 0.0]]
    assert batch.tokens.tolist() == [[0, *b"ACGTN", 0]]


def test_segments_need_not_be_whole_records() -> None:
    store = MemoryStore([(b"", b"ACGTACGTAC"), (b"", b"TTTTT")])
    store._table = np.array([(0, 2, 5, 0, 0), (1, 12, 14, 0, 0)], dtype=SEGMENT)
    batch = Windows(store, "train", WindowOptions(length=7, shuffle=False, reverse_complement=False)).batch(0, 1)
    assert batch.tokens.tobytes() == b"\0GTA\0TT\0"
    assert np.flatnonzero(batch.document_starts).tolist() == [1, 5]


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_windows_of_a_prepared_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr("data.windows._IN_MEMORY", in_memory)
    (tmp_path / "a.fa").write_text(">a\nACGTNacgt\n>b\nGGUC\n>c\nTTTTT\n")
    (tmp_path / "tags.tsv").write_text("record\ttag\nb\t|x|\n")
    prepare([tmp_path / "a.fa"], tmp_path / "s.h5", PrepareOptions(valid=0, tags=tmp_path / "tags.tsv"))
    with TokenStore(tmp_path / "s.h5") as store:
        options = WindowOptions(length=10, shuffle=False, reverse_complement=False)
        batch = Windows(store, Split.TRAIN, options).batch(0, 3)
        both = Windows(store, Split.TRAIN, WindowOptions(length=24, seed=1)).batch(0, 2)
    assert batch.tokens[:, 1:].tobytes() == b"ACGTNACGT\0|X|GGTC\0TTTTT\0" + b"\1" * 6
    assert batch.weights.ravel()[:10].tolist() == pytest.approx([1, 1, 1, 1, 0, 0.1, 0.1, 0.1, 0.1, 0])
    assert both.tokens.tobytes().count(b"|") in (4, 5, 6)
    assert Counter(both.weights.ravel().tolist()) == Counter([1.0] * 26 + [np.float32(0.1).item()] * 8 + [0.0] * 14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length of a window must be at least 1, got 0"),
        ({"length": 1, "lower_case_weight": 1.5}, "weight of lower-case bases must be 0 to 1, got 1.5"),
        ({"length": 1, "lower_case_weight": float("nan")}, "weight of lower-case bases must be 0 to 1, got nan"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WindowOptions(**options)  # type: ignore[arg-type]


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"memory\.h5: split 'valid' holds no bases"):
        Windows(MemoryStore([(b"", b"A")]), "valid", WindowOptions(length=1))


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0)])
def test_impossible_batches_are_refused(first: int, count: int) -> None:
    with pytest.raises(DataError, match=f"got first {first} and count {count}"):
        windows([(b"", b"ACGT")], 2).batch(first, count)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_one(size: int, key: int) -> None:
    permutation = Permutation(size=size, key=key)
    images = permutation(np.arange(size))
    assert sorted(images.tolist()) == list(range(size))
    assert permutation(np.array([size - 1, 0])).tolist() == images[[-1, 0]].tolist()


def test_permutation_does_not_change() -> None:
    """The order of somebody's training data hangs on it: these are what Python's integers give."""
    assert Permutation(size=1000, key=7)(np.arange(6)).tolist() == [813, 834, 462, 267, 797, 746]
    assert Permutation(size=10**12, key=2**64 - 1)(np.array([0, 1, 10**12 - 1])).tolist() == [
        97374236445,
        499809070460,
        574957892331,
    ]


def test_permutation_spreads_and_refuses() -> None:
    permutation = Permutation(size=10_000, key=1)
    images = permutation(np.arange(1000))
    assert abs(images.mean() - 5000) < 400
    assert len(set(np.diff(images).tolist())) > 900
    for outside in (10_000, -1):
        with pytest.raises(IndexError):
            permutation(np.array([5, outside]))


@given(key=st.integers(0, 2**64 - 1), count=st.integers(0, 50))
def test_mix_range_is_mix(key: int, count: int) -> None:
    assert mix_range(key, count).tolist() == [mix(key, i) for i in range(count)]
