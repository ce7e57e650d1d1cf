"""How well a head does on examples that it was not trained on, with intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

import numpy as np

from data.agreement import Estimate, Floats, auroc, bootstrap, r_squared, spearman
from data.store import Split

COLUMNS = ("split", "examples", "metric", "value", "low", "high")
_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A metric of one part of the examples; the interval holds 95% of its bootstrap values."""

    split: Split
    examples: int
    metric: str
    estimate: Estimate

    def row(self) -> list[str]:
        """The cells of `COLUMNS`."""
        numbers = (self.estimate.value, self.estimate.low, self.estimate.high)
        return [
            self.split.value,
            str(self.examples),
            self.metric,
            *("NA" if isnan(number) else f"{number:.4f}" for number in numbers),
        ]


def measure(split: Split, outputs_nc: Floats, values_n: Floats, *, classes: int, seed: int) -> Iterator[Measure]:
    """Compare outputs with labels.

    Args:
        outputs_nc: logits of classes [N, C], or predicted numbers [N, 1].
        values_n: numbers of classes or measurements [N].
        classes: how many, 0 for measurements.
    """
    metrics = {"accuracy": _accuracy, "auroc": _auroc} if classes else {"spearman": _spearman, "r2": _r_squared}
    if not len(values_n):
        return
    for name, metric in metrics.items():
        estimate = bootstrap(metric, outputs_nc, values_n, rounds=_ROUNDS, seed=seed)
        yield Measure(split=split, examples=len(values_n), metric=name, estimate=estimate)


def _accuracy(outputs_nc: Floats, values_n: Floats) -> float:
    return float((outputs_nc.argmax(axis=1) == values_n).mean())


def _auroc(outputs_nc: Floats, values_n: Floats) -> float:
    """Of the second of two classes; of more, the mean over those that are there of each against the rest."""
    shifted_nc = outputs_nc - outputs_nc.max(axis=1, keepdims=True)
    logs_nc = shifted_nc - np.log(np.exp(shifted_nc).sum(axis=1, keepdims=True))
    columns = [1] if logs_nc.shape[1] == 2 else range(logs_nc.shape[1])
    areas = [auroc(logs_nc[:, column], (values_n == column).astype(np.float64)) for column in columns]
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else float("nan")


def _spearman(outputs_nc: Floats, values_n: Floats) -> float:
    return spearman(outputs_nc[:, 0], values_n)


def _r_squared(outputs_nc: Floats, values_n: Floats) -> float:
    return r_squared(outputs_nc[:, 0], values_n)
