"""The picture of a region's tracks, as genome browsers draw them: one above the other over a common axis.

Knows values and letters; knows nothing of models or files of tracks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from data.intervals import Interval
from data.regions import sliding_mean
from evo_cli.outputs.picture import blank, save

BASES = "ACGT"
LOGO_LENGTH = 150
"""Bases up to which each is drawn as letters."""
_BINS = 2000  # about what a picture can show
_SMOOTHED_OVER = 60  # the bold line is a mean over this part of a longer region
_COLOURS = {"A": "#3f9b4f", "C": "#3b6ea5", "G": "#e0a030", "T": "#c9483b"}
_STRANDS = {"forward": "#3b6ea5", "reverse": "#d1602f", "mean": "#333333"}
_INK, _GRID = "#333333", "#e6e6e6"
_LINES = {
    "logprob": ("log-probability", float(np.log(0.25))),
    "entropy": ("entropy (bits)", 2.0),
}

Read = Callable[[int, int], NDArray[np.float32]]
"""Values of bases start .. end - 1 of the contig."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is drawn. tracks: by name (`logprob`, `entropy`, `A` ...) and strand; sequence: its letters if short."""

    interval: Interval
    tracks: Mapping[tuple[str, str], Read]
    sequence: bytes
    title: str


def plot_region(path: Path, picture: Picture) -> None:
    """Draw a region to a PNG file, atomically: a panel for log-probabilities, entropies and bases, as far as given."""
    names = {name for name, _ in picture.tracks}
    panels = [name for name in _LINES if name in names] + ["bases"] * (set(BASES) <= names)
    heights = [1.0 if name in _LINES else 1.2 for name in panels]
    figure = blank(11, 0.9 + 1.7 * sum(heights))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for name, axes in zip(panels, rows, strict=True):
        if name in _LINES:
            _draw_lines(axes, picture, name)
        elif len(picture.interval) <= LOGO_LENGTH:
            _draw_logo(axes, picture)
        else:
            _draw_areas(axes, picture)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK)
    _draw_positions(rows[-1], picture.interval)
    figure.align_ylabels(list(rows))
    rows[0].set_title(picture.title.replace("$", r"\$"), loc="left", color=_INK, fontsize=11)
    save(figure, path)


def binned(read: Read, interval: Interval) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Means over at most 2,000 equal stretches of an interval, and the 1-based positions of their middles.

    A stretch without a value has NaN. The memory is that of a stretch, however long the interval.
    """
    edges = np.linspace(interval.start, interval.end, min(len(interval), _BINS) + 1).astype(int)
    means = np.full(edges.size - 1, np.nan, dtype=np.float32)
    for place, (start, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        values = read(start, end)
        known = values[~np.isnan(values)]
        if known.size:
            means[place] = known.mean(dtype=np.float64)
    return (edges[:-1] + edges[1:] + 1) / 2, means


def _draw_lines(axes: Axes, picture: Picture, name: str) -> None:
    label, level = _LINES[name]
    strands = [strand for track, strand in picture.tracks if track == name]
    for strand in strands:
        places, values = binned(picture.tracks[name, strand], picture.interval)
        window = max(1, values.size // _SMOOTHED_OVER)
        colour, alone = _STRANDS[strand], len(strands) == 1
        if alone and window > 1:
            axes.plot(places, values, color=colour, lw=0.6, alpha=0.3)
        weak = not alone and strand != "mean"
        axes.plot(places, sliding_mean(values, window), color=colour, lw=1.4, alpha=0.6 if weak else 1, label=strand)
    over = round(window * len(picture.interval) / values.size)
    axes.axhline(level, color=_INK, lw=0.8, ls=":", label="four equal bases")
    axes.set_ylabel(f"{label}\nmean over {over:,} bp" if over > 1 else label, color=_INK)
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    _legend(axes)


def _base_probabilities(picture: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Positions, probabilities [4, bins] as shares of the four, and the strand: the mean where both were scanned."""
    strands = [strand for track, strand in picture.tracks if track == "A"]
    strand = "mean" if "mean" in strands else strands[0]
    read = [binned(picture.tracks[base, strand], picture.interval) for base in BASES]
    probs = np.stack([values for _, values in read]).astype(np.float64)
    return read[0][0], probs / probs.sum(axis=0), strand


def _draw_areas(axes: Axes, picture: Picture) -> None:
    places, probs, strand = _base_probabilities(picture)
    window = max(1, places.size // _SMOOTHED_OVER // 2)
    smooth = [sliding_mean(row.astype(np.float32), window) for row in probs]
    axes.stackplot(places, *smooth, colors=[_COLOURS[base] for base in BASES], labels=list(BASES), lw=0, alpha=0.85)
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"P(base), {strand}", color=_INK)
    _legend(axes)


def _draw_logo(axes: Axes, picture: Picture) -> None:
    """Letters as high as their probability times what the prediction knows (2 bits less its entropy); likeliest on top.

    Below them stands the sequence itself.
    """
    places, probs, strand = _base_probabilities(picture)
    # NaN, where nothing is predicted, stays NaN
    known = 2 + np.where(probs == 0, 0, probs * np.log2(np.where(probs == 0, 1, probs))).sum(axis=0)
    top = max(0.01, float(np.nanmax(known, initial=0)) * 1.05)
    for place, column, information, letter in zip(places, probs.T, known, picture.sequence.decode(), strict=True):
        bottom = 0.0
        for index in np.argsort(column) if np.isfinite(information) else ():
            height = float(column[index] * information)
            _draw_letter(axes, BASES[index], place, bottom, height)
            bottom += height
        _draw_letter(axes, letter.upper(), place, -0.17 * top, 0.12 * top)
    axes.axhline(0, color=_INK, lw=0.8)
    axes.set_ylim(-0.2 * top, top)
    axes.set_ylabel(f"prediction (bits), {strand}", color=_INK)
    axes.set_yticks([tick for tick in MaxNLocator(4).tick_values(0, top) if tick <= top])


@cache
def _outline(letter: str) -> TextPath:
    return TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))


def _draw_letter(axes: Axes, letter: str, middle: float, bottom: float, height: float) -> None:
    """Draw a letter stretched to 0.9 bases of width and a height in units of the axes."""
    if height <= 0:
        return
    outline = _outline(letter)
    box = outline.get_extents()
    move = (
        Affine2D()
        .translate(-box.x0 - box.width / 2, -box.y0)
        .scale(0.9 / box.width, height / box.height)
        .translate(middle, bottom)
    )
    axes.add_patch(PathPatch(move.transform_path(outline), color=_COLOURS.get(letter, "#9a9a9a"), lw=0))


def _draw_positions(axes: Axes, interval: Interval) -> None:
    """The common axis: in kb where the region is long, and always 1-based."""
    first, last = interval.start + 1, interval.end
    long = len(interval) >= 2_000
    digits = 0 if len(interval) >= 20_000 else 1
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: f"{place / 1000:,.{digits}f}" if long else f"{place:,.0f}")
    )
    axes.set_xlabel(f"position on {interval.contig} ({'kb' if long else 'bp'})".replace("$", r"\$"), color=_INK)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=_INK, frameon=False, fontsize=8, handlelength=1.4
    )
