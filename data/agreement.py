"""How well numbers agree with labels: areas under curves for classes, rank correlation for measurements, intervals.

Knows numbers only: nothing of variants, files or models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A statistic and the interval that 95% of its bootstrap values lie in."""

    value: float
    low: float
    high: float


def auroc(scores: Floats, positive: Floats) -> float:
    """The probability that a positive scores above a negative, ties counting half; NaN without both.

    Args:
        scores: [N].
        positive: [N], 1 for positives and 0 for negatives.
    """
    count = float(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    above = float((ranks(scores) * positive).sum()) - count * (count + 1) / 2
    return above / (count * others)


def average_precision(scores: Floats, positive: Floats) -> float:
    """The mean over positives of the precision among what scores at least as high; NaN without positives.

    Equal scores enter together, so the order of the rows does not count.
    """
    if not positive.sum():
        return float("nan")
    precision, recall = precision_recall(scores, positive)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def spearman(scores: Floats, values: Floats) -> float:
    """Correlation of the ranks, ties sharing their mean rank; NaN where either does not vary."""
    a, b = ranks(scores), ranks(values)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / spread if spread else float("nan")


def r_squared(predictions: Floats, values: Floats) -> float:
    """The part of the values' variance that is predicted; below 0 if their mean does better, NaN if they do not vary.

    Not the square of a correlation: predictions that are off by a factor are off.
    """
    spread = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - predictions) ** 2).sum()) / spread if spread else float("nan")


def ranks(values: Floats) -> Floats:
    """Ranks from 1 up; equal values share their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[places]


def precision_recall(scores: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """Precision and recall when everything that scores at least so high is called, for each score from the highest."""
    called, found = _cumulated(scores, positive)
    return found / called, found / positive.sum()


def receiver_operating(scores: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates for each score from the highest, beginning with (0, 0)."""
    called, found = _cumulated(scores, positive)
    false = (called - found) / (len(positive) - positive.sum())
    true = found / positive.sum()
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def _cumulated(scores: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """How many score at least so high, and how many of them are positive, for each distinct score from the highest."""
    distinct, places = np.unique(-scores, return_inverse=True)
    called = np.bincount(places, minlength=len(distinct)).cumsum()
    found = np.bincount(places, weights=positive, minlength=len(distinct)).cumsum()
    return called.astype(np.float64), found


def bootstrap(metric: Metric, scores: Floats, labels: Floats, *, rounds: int, seed: int) -> Estimate:
    """A metric, and the 2.5 and 97.5 percentiles of it over `rounds` samples of the rows with replacement.

    Samples in which the metric is not defined do not count; without any, or with 0 rounds, the interval is NaN.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        rows = rng.integers(0, len(scores), len(scores))
        values.append(metric(scores[rows], labels[rows]))
    defined = np.array([value for value in values if not np.isnan(value)])
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (float("nan"), float("nan"))
    return Estimate(value=metric(scores, labels), low=float(low), high=float(high))
