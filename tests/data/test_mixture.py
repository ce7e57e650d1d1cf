"""Mixtures of stores: exact shares, nothing left out, and no state."""

import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.mixture import Mixture
from data.prepare import PrepareOptions, prepare
from data.store import TokenStore
from data.windows import Batch, WindowOptions, Windows


class Numbered:
    """Windows whose tokens are their source and their number."""

    def __init__(self, name, windows=10):
        self.name, self.windows = name, windows

    def __len__(self):
        return self.windows

    def batch(self, first, count):
        rows = np.array([[self.name, number % 251] for number in range(first, first + count)], np.uint8)
        return Batch(tokens=rows, weights=rows[:, 1:].astype(np.float32), document_starts=rows > 999)


def origins(mixture, count, first=0):
    return [mixture.origin(number) for number in range(first, first + count)]


def test_shares_are_exact_in_every_block():
    mixture = Mixture([Numbered(0), Numbered(1), Numbered(2)], [0.5, 0.25, 0.25], seed=3)

    for block in range(5):
        counts = Counter(source for source, _ in origins(mixture, 1024, block * 1024))
        assert counts == {0: 512, 1: 256, 2: 256}


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), seed=st.integers(0, 2**64), blocks=st.integers(1, 4)
)
def test_shares_are_kept_and_no_window_is_left_out(weights, seed, blocks):
    mixture = Mixture([Numbered(number) for number in range(len(weights))], weights, seed=seed)
    count = blocks * mixture._block

    seen = origins(mixture, count)

    for source, weight in enumerate(weights):
        windows = [window for of, window in seen if of == source]
        assert windows == list(range(len(windows)))
        assert abs(len(windows) - count * Fraction(weight) / sum(map(Fraction, weights))) < 1


def test_a_rare_source_has_its_share_too():
    mixture = Mixture([Numbered(0), Numbered(1)], [1e-5, 1.0])

    rare = [number for number, (source, _) in enumerate(origins(mixture, 1_000_000)) if source == 0]

    assert abs(len(rare) - 10) <= 1


def test_a_share_whose_block_would_fill_the_memory_is_refused():
    with pytest.raises(DataError, match=r"smallest share is 1e-09; it must be at least 1e-06"):
        Mixture([Numbered(0), Numbered(1)], [1e-9, 1.0])


def test_the_sources_are_mixed_within_a_block():
    """Runs of one source are as short as those of coin tosses, not halves of a block."""
    sources = [source for source, _ in origins(Mixture([Numbered(0), Numbered(1)], [1, 1], seed=1), 1024)]

    changes = sum(before != after for before, after in pairwise(sources))

    assert 430 < changes < 594  # five standard deviations around 512


def test_a_window_depends_on_its_number_alone():
    def mixture(seed=5):
        return Mixture([Numbered(0), Numbered(1)], [0.7, 0.3], seed=seed)

    whole = mixture().batch(0, 3000)
    far_first = mixture()
    pieces = [far_first.batch(first, 3) for first in range(2997, -1, -3)]

    for field in ("tokens", "weights", "document_starts"):
        joined = np.concatenate([getattr(piece, field) for piece in reversed(pieces)])
        assert np.array_equal(joined, getattr(whole, field))
    assert not np.array_equal(mixture(seed=6).batch(0, 3000).tokens, whole.tokens)


def test_a_far_window_is_as_quick_as_a_near_one():
    mixture = Mixture([Numbered(0), Numbered(1)], [0.7, 0.3])

    source, window = mixture.origin(10**15)

    assert window == pytest.approx(10**15 * mixture.shares[source], rel=1e-9)


def test_one_source_is_that_source():
    mixture = Mixture([Numbered(0)], [3.0])

    assert origins(mixture, 2000, 5000) == [(0, number) for number in range(5000, 7000)]


def test_the_windows_are_those_of_the_stores(tmp_path):
    rng = random.Random(0)
    stores = []
    for name in "ab":
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{''.join(rng.choices('ACGT', k=500))}\n")
        prepare([tmp_path / f"{name}.fa"], tmp_path / f"{name}.h5", PrepareOptions(valid=0.0))
        stores.append(TokenStore(tmp_path / f"{name}.h5"))
    sources = [Windows(store, "train", WindowOptions(length=20, seed=1)) for store in stores]
    mixture = Mixture(sources, [2, 1], seed=1)

    batch = mixture.batch(0, 90)

    for row, (source, window) in enumerate(origins(mixture, 90)):
        alone = sources[source].batch(window, 1)
        assert np.array_equal(batch.tokens[row], alone.tokens[0])
        assert np.array_equal(batch.weights[row], alone.weights[0])
        assert np.array_equal(batch.document_starts[row], alone.document_starts[0])
    assert len(mixture) == len(sources[0]) + len(sources[1])
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "a mixture needs a weight for each source, not 1 for 2"),
        ([1.0, 0.0], "the weight of a source must be a number above 0, got 0.0"),
        ([1.0, float("nan")], "above 0, got nan"),
        ([1.0, -2.0], "above 0, got -2.0"),
    ],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(DataError, match=message):
        Mixture([Numbered(0), Numbered(1)], weights)


def test_impossible_numbers_are_refused():
    with pytest.raises(DataError, match="a batch needs first >= 0 and count >= 1, got first -1 and count 1"):
        Mixture([Numbered(0)], [1.0]).batch(-1, 1)
