"""Metrics against their definitions, pair by pair and threshold by threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.agreement import (
    auroc,
    average_precision,
    bootstrap,
    precision_recall,
    ranks,
    receiver_operating,
    spearman,
)

# few distinct values, so that there are ties
ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


def split(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(score) for score, _ in rows]), np.array([float(truth) for _, truth in rows])


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_auroc_counts_the_pairs_in_which_the_positive_wins(rows: list[tuple[int, bool]]) -> None:
    pairs = [(p > n) + (p == n) / 2 for p, yes in rows if yes for n, no in rows if not no]
    value = auroc(*split(rows))
    assert value == pytest.approx(np.mean(pairs)) if pairs else np.isnan(value)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_average_precision_is_the_mean_precision_at_the_positives(rows: list[tuple[int, bool]]) -> None:
    at = [[truth for other, truth in rows if other >= score] for score, yes in rows if yes]
    value = average_precision(*split(rows))
    assert value == pytest.approx(np.mean([np.mean(called) for called in at])) if at else np.isnan(value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
def test_spearman_is_pearson_of_the_ranks(rows: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    by_hand = [[(column < one).sum() + ((column == one).sum() + 1) / 2 for one in column] for column in (a, b)]
    np.testing.assert_allclose(ranks(a), by_hand[0])
    value = spearman(a, b)
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert value == pytest.approx(np.corrcoef(by_hand)[0, 1])
    else:
        assert np.isnan(value)


def test_the_curves_enclose_the_areas() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 300).astype(float), rng.integers(0, 2, 300).astype(float)
    false, true = receiver_operating(scores, truth)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(auroc(scores, truth))
    precision, recall = precision_recall(scores, truth)
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx(truth.mean())


def test_an_interval_holds_the_true_value_as_often_as_it_says() -> None:
    """Normal scores, positives one standard deviation higher: the area is Phi(1 / sqrt 2) = 0.7602."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        truth = (np.arange(150) % 2).astype(float)
        scores = rng.normal(size=150) + truth
        estimate = bootstrap(auroc, scores, truth, rounds=200, seed=seed)
        assert estimate.low < estimate.value < estimate.high
        held += estimate.low <= 0.7602 <= estimate.high
    assert 50 <= held <= 60


def test_an_interval_depends_on_the_seed_alone_and_may_not_exist() -> None:
    scores, truth = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 1.0])
    assert bootstrap(auroc, scores, truth, rounds=50, seed=3) == bootstrap(auroc, scores, truth, rounds=50, seed=3)
    none = bootstrap(auroc, scores, truth, rounds=0, seed=3)
    assert none.value == 0.75
    assert np.isnan(none.low)
    assert np.isnan(none.high)
