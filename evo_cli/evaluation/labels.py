"""Scores of variants beside what is known of them: which go together, how well they agree, and the picture of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.agreement import (
    Estimate,
    Floats,
    auroc,
    average_precision,
    bootstrap,
    precision_recall,
    receiver_operating,
    spearman,
)
from data.errors import DataError
from data.labels import Key, is_missing, is_vcf, read_labels
from evo_cli.outputs.picture import blank, entitle, save
from evo_cli.outputs.vcf import info_field

COLUMNS = ("group", "metric", "variants", "positives", "value", "low", "high")
_ALL = "all"
_MOST_CURVES = 6
_COLOURS = ("#3b6ea5", "#d1602f", "#4a8f5b", "#8a5aa8", "#b58a2a", "#777777")
_INK = "#333333"


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Alleles with a score and a label, in the order of the labels; `groups` is empty if none were asked for.

    positives: 1 and 0 where labels are classes. values: the labels where they are numbers. One of the two is None.
    """

    scores: Floats
    positives: Floats | None
    values: Floats | None
    groups: list[str]
    unscored: int  # labelled alleles that the scores have not, or have no number for
    unlabelled: int  # alleles of the labels without a value, or with NaN
    unknown: int  # scored alleles that the labels do not have
    repeated: int  # rows of either file whose allele an earlier one has: the first counts

    def subsets(self) -> Iterator[tuple[str, "Floats"]]:
        """All alleles, then each group, as masks."""
        yield _ALL, np.ones(len(self.scores), dtype=bool)
        groups = np.array(self.groups)
        for group in dict.fromkeys(self.groups):
            yield f"{group} (group)" if group == _ALL else group, groups == group

    def omitted(self) -> Iterator[str]:
        """What was left out, a sentence each."""
        counts = {
            "labelled alleles have no score": self.unscored,
            "alleles have no label": self.unlabelled,
            "scored alleles are not among the labels": self.unknown,
            "rows repeat an allele, whose first row counts": self.repeated,
        }
        for what, count in counts.items():
            if count:
                yield f"{count:,} {what}"


def match(
    scores: str, labels: str, *, score: str, label: str, positive: Iterable[str], by: str | None, higher: bool
) -> Labelled:
    """Put scores and labels of the same alleles together.

    Args:
        positive: the classes that count as positive; without any, labels are numbers.
        by: another field, whose values make groups.
        higher: positives score higher. If not, they are the less likely ones, and scores are turned around.

    Raises:
        DataError: a file cannot be read, or there is nothing to compare.
    """
    found: dict[Key, float] = {}
    wanted = set(positive)
    kept: list[tuple[float, str, str]] = []
    known: set[Key] = set()
    repeated = unscored = unlabelled = 0
    for key, number in _numbers(scores, info_field(score) if is_vcf(scores) else score):
        repeated += key in found
        found.setdefault(key, number)
    for key, fields in read_labels(labels, [label, *([by] if by else [])]):
        if key in known:
            repeated += 1
            continue
        known.add(key)
        if is_missing(fields[label]):
            unlabelled += 1
        elif np.isnan(found.get(key, np.nan)):
            unscored += 1
        else:
            kept.append((found[key], fields[label], (fields[by] or "NA") if by else ""))
    if not kept and not unscored:
        raise DataError(f"{labels}: none of its {unlabelled} alleles has a {label}").hint(
            "`--label` is the name of the INFO field, or of the column, that is known"
        )
    if not kept:
        raise DataError(f"{labels}: none of its {unscored} labelled alleles has a score in {scores}").hint(
            "contigs, positions, REF and ALT must be written alike in both"
        )
    classes = sorted({text for _, text, _ in kept})
    if wanted and not wanted & set(classes):
        raise DataError(f"{labels}: no allele has {label} {' or '.join(sorted(wanted))}").hint(
            f"the values are {', '.join(classes[:8])}"
        )
    values = None if wanted else np.array([_number(labels, label, text, classes) for _, text, _ in kept])
    signed = np.array([number for number, _, _ in kept])
    return Labelled(
        scores=signed if higher or not wanted else -signed,
        positives=np.array([float(text in wanted) for _, text, _ in kept]) if wanted else None,
        values=values,
        groups=[group for *_, group in kept] if by else [],
        unscored=unscored,
        unlabelled=unlabelled,
        unknown=sum(key not in known and not np.isnan(number) for key, number in found.items()),
        repeated=repeated,
    )


def _numbers(path: str, field: str) -> Iterator[tuple[Key, float]]:
    for key, fields in read_labels(path, [field]):
        text = fields[field]
        try:
            yield key, float("nan") if is_missing(text) else float(text)
        except ValueError:
            raise DataError(f"{path}: {field} of {key[0]}:{key[1]} must be a number, not `{text}`") from None


def _number(path: str, field: str, text: str, classes: list[str]) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path}: {field} is not a number but a class: {', '.join(classes[:8])}").hint(
            "say which of them are positive: --positive A,B"
        ) from None


def measure(labelled: Labelled, *, rounds: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Rows of `COLUMNS`: of classes the area under the ROC curve and the average precision, of numbers Spearman's."""
    for group, mask in labelled.subsets():
        scores, size = labelled.scores[mask], str(int(mask.sum()))
        if labelled.positives is not None:
            truth = labelled.positives[mask]
            for name, metric in (("auroc", auroc), ("average_precision", average_precision)):
                estimate = bootstrap(metric, scores, truth, rounds=rounds, seed=seed)
                yield group, name, size, str(int(truth.sum())), *_cells(estimate)
        elif labelled.values is not None:
            estimate = bootstrap(spearman, scores, labelled.values[mask], rounds=rounds, seed=seed)
            yield group, "spearman", size, "NA", *_cells(estimate)


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    low, value, high = (
        "NA" if np.isnan(number) else f"{number:.4f}" for number in (estimate.low, estimate.value, estimate.high)
    )
    return value, low, high


def plot_agreement(labelled: Labelled, picture: Path, *, title: str, score: str, label: str) -> int:
    """Draw the curves of all alleles and of the largest groups, or scores over values; atomically, as PNG.

    Returns:
        Groups that are too small to be drawn beside the others.
    """
    classes = labelled.positives is not None
    figure = blank(9, 4.2) if classes else blank(5.5, 4.6)
    every = sorted(labelled.subsets(), key=lambda one: (one[0] != _ALL, -int(one[1].sum())))
    subsets = every[:_MOST_CURVES]
    if labelled.positives is not None:
        left, right = figure.subplots(1, 2)
        for (group, mask), colour in zip(subsets, _COLOURS, strict=False):
            scores, truth = labelled.scores[mask], labelled.positives[mask]
            if 0 < truth.sum() < len(truth):
                name = f"{group} ({auroc(scores, truth):.3f})".replace("$", r"\$")
                left.plot(*receiver_operating(scores, truth), color=colour, lw=1.5, label=name)
                precision, recall = precision_recall(scores, truth)
                name = f"{group} ({average_precision(scores, truth):.3f})".replace("$", r"\$")
                steps = np.append(0.0, recall), np.append(precision[:1], precision)
                right.plot(*steps, color=colour, lw=1.5, label=name, drawstyle="steps-pre")
        left.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls=":")
        left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC (area)")
        share = float(labelled.positives.mean())
        right.axhline(share, color=_INK, lw=0.8, ls=":")
        right.set(xlabel="recall", ylabel="precision", title="precision-recall (average)", ylim=(0, 1.03))
        panels = [left, right]
    elif labelled.values is not None:
        panel = figure.subplots()
        for (group, mask), colour in zip(subsets[1:] or subsets, _COLOURS, strict=False):
            panel.plot(
                labelled.values[mask], labelled.scores[mask], ".", ms=3, alpha=0.5, color=colour,
                label=group.replace("$", r"\$"),
            )  # fmt: skip
        panel.set(xlabel=label, ylabel=score)
        panels = [panel]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, facecolor="white", edgecolor="none", framealpha=0.85)
    entitle(figure, title)
    save(figure, picture)
    return len(every) - len(subsets)
