"""Bits per base by how many bases come before: what a model makes of its context."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.sequence import IS_BASE
from evo_cli.evaluation.held_out import Bases
from evo_cli.outputs.picture import blank, entitle, save

if TYPE_CHECKING:
    from sh2.model import StripedHyena2


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """The A, C, G and T that have `first` to `stop - 1` bases before them in their window."""

    first: int
    stop: int
    bases: int
    bits_per_base: float
    error: float  # of the mean, from window to window; NaN of one window


def by_position(
    model: "StripedHyena2", stretches: Sequence[Bases], context: int, progress: Callable[[int], None]
) -> list[Positions]:
    """Cut stretches into windows of `context` bases, and measure these by position: 0, 1, 2 to 3, 4 to 7 and so on.

    Every row is of the same windows, so rows differ by what comes before alone.

    Raises:
        DataError: no stretch is as long as a window.
    """
    from sh2.reading.perplexity import window_log_probs

    longest = max(stretch.size for stretch in stretches)
    if longest < context:
        raise DataError(f"a window is {context:,} bases, the longest sequence {longest:,}").hint("lower `--context`")
    bits, true = [], []
    for stretch in stretches:
        log_probs = window_log_probs(model, stretch, length=context, progress=progress)
        whole = stretch[: log_probs.size].reshape(log_probs.shape)
        true.append(IS_BASE[whole])
        bits.append(log_probs.astype(np.float64) / -math.log(2))
    all_bits, all_true = np.concatenate(bits), np.concatenate(true)
    edges = [0, *(1 << power for power in range((context - 1).bit_length())), context]
    return [_row(all_bits[:, first:stop], all_true[:, first:stop], first, stop) for first, stop in pairwise(edges)]


def _row(bits: NDArray[np.float64], true: NDArray[np.bool_], first: int, stop: int) -> Positions:
    counts = true.sum(axis=1)
    sums = np.where(true, bits, 0.0).sum(axis=1)
    bases, windows = int(counts.sum()), int((counts > 0).sum())
    mean = sums.sum() / bases if bases else math.nan
    # the windows are the sample: bases of one are not independent
    spread = ((sums - mean * counts) ** 2).sum()
    error = math.sqrt(spread * windows / (windows - 1)) / bases if windows > 1 else math.nan
    return Positions(first=first, stop=stop, bases=bases, bits_per_base=float(mean), error=error)


def plot_positions(rows: Sequence[Positions], picture: Path, *, title: str) -> None:
    """Draw bits per base by position, with their errors; atomically, as PNG."""
    figure = blank(7, 4)
    axes = figure.subplots()
    shown = [row for row in rows if row.first and row.bases]
    x = [math.sqrt(row.first * row.stop) for row in shown]
    axes.errorbar(
        x, [row.bits_per_base for row in shown], [row.error for row in shown], color="#3b6ea5", marker="o", ms=4, lw=1.4
    )
    axes.axhline(2.0, color="#333333", lw=0.8, ls=":", label="2 bits: four equal bases")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bases before", ylabel="bits per base")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, facecolor="white", edgecolor="none", framealpha=0.85)
    entitle(figure, title)
    save(figure, picture)
