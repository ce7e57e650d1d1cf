"""The picture of a run: loss and learning rate over steps. Reads `metrics.jsonl`; knows nothing of models."""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sh2.train.records import read_lines

_TRAIN, _VALID, _RATE, _INK = "#3b6ea5", "#d1602f", "#9a9a9a", "#333333"
_SMOOTHED_OVER = 50  # a running mean over this part of the run


def plot_run(metrics: Path, picture: Path, *, title: str) -> bool:
    """Draw the metrics of a run to a PNG file, atomically; return False, with nothing drawn, if there are none."""
    records = [record for record in read_lines(metrics) if "bits_per_base" in record]
    if not records:
        return False
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    bits = figure.add_subplot()
    steps = [record["step"] for record in records]
    _draw_training(bits, steps, [record["bits_per_base"] for record in records])
    valid = [(record["step"], record["valid_bits_per_base"]) for record in records if "valid_bits_per_base" in record]
    if valid:
        bits.plot(*zip(*valid, strict=True), "o-", color=_VALID, ms=4, lw=1, zorder=3)
        best = min(value for _, value in valid)
        bits.plot([], [], "o-", color=_VALID, ms=4, lw=1, label=f"validation, best {best:.3f}")
    _draw_rate(bits, steps, [record["lr"] for record in records])
    bits.set_title(title.replace("$", r"\$"), loc="left", color=_INK)
    bits.legend(loc="upper right", labelcolor=_INK, facecolor="white", edgecolor="none", framealpha=0.9)
    partial = picture.with_name(f".partial-{picture.name}")
    figure.savefig(partial, format="png")
    os.replace(partial, picture)
    return True


def _draw_training(axes: Axes, steps: list[int], values: list[float]) -> None:
    span = max(1, len(values) // _SMOOTHED_OVER)
    axes.plot(
        steps, values, color=_TRAIN, lw=0.8, alpha=0.35 if span > 1 else 1.0, label=None if span > 1 else "training"
    )
    if span > 1:
        sums = [0.0]
        for value in values:
            sums.append(sums[-1] + value)
        means = [(sums[i + 1] - sums[max(0, i + 1 - span)]) / min(span, i + 1) for i in range(len(values))]
        axes.plot(steps, means, color=_TRAIN, lw=1.6, label=f"training, mean of {span} steps")
    axes.axhline(2.0, color=_INK, lw=0.8, ls=":", label="2 bits: four equal bases")
    # the first steps fall from 9 bits, that of 512 tokens: what comes after them sets the scale
    shown = [*values[len(values) // 10 :], 2.0]
    margin = 0.06 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("bits per base", color=_INK)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def _draw_rate(axes: Axes, steps: list[int], rates: list[float]) -> None:
    rate = axes.twinx()
    rate.plot(steps, rates, color=_RATE, lw=1, ls=(0, (4, 3)))
    rate.set_ylabel("learning rate", color=_RATE)
    rate.tick_params(axis="y", colors=_RATE)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set_ylim(bottom=0)
    rate.spines[["top", "left", "right"]].set_visible(False)
    # the curves of the loss stay in front
    axes.set_zorder(rate.get_zorder() + 1)
    axes.patch.set_visible(False)
