"""The picture of a region's saturation: every base by every change, coloured by how much likelier it makes the region.

Knows the columns of the table; knows nothing of how they came about.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from data.errors import DataError
from evo_cli.outputs.formats import read_rows
from evo_cli.outputs.picture import blank, save

_BASES = "ACGT"
_ROW_BASES = 100  # positions in one strip
MOST_BASES = 5000
"""Positions that one picture can show."""
_GAP = 20  # positions without a base to change that do not begin a new strip
_INK = "#333333"
_COLOURS = colormaps["RdBu"].with_extremes(bad="#dddddd")


@dataclass(slots=True)
class _Stretch:
    """Positions that follow each other on a contig: their reference bases, and deltas of A, C, G, T (NaN: none)."""

    contig: str
    first: int
    bases: list[str] = field(default_factory=list)
    deltas: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.first + len(self.bases)


def plot_saturation(table: Path, picture: Path) -> None:
    """Draw the deltas of a table of `evo score --saturate` to a PNG file, atomically.

    Raises:
        DataError: there are more positions than a picture can show.
    """
    strips = _strips(_stretches(table))
    if not strips:
        raise DataError(f"{picture}: there is nothing to draw: the regions hold no A, C, G or T")
    # the colour of a few extreme changes must not take it from all others
    sizes = np.abs(np.concatenate([np.concatenate(strip.deltas) for strip in strips]))
    known = sizes[np.isfinite(sizes)]
    most = float(np.quantile(known, 0.995)) if known.size else 1.0
    scale = Normalize(-(most or 1.0), most or 1.0)
    figure = blank(14, 1.0 + 1.05 * len(strips), dpi=120)
    grid = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    width = max(len(one.bases) for one in strips)
    for axes, strip in zip(grid, strips, strict=True):
        _draw(axes, strip, scale, width)
        if strips[0].contig != strips[-1].contig:
            axes.set_title(strip.contig.replace("$", r"\$"), loc="left", fontsize=8, color=_INK)
    shown = ScalarMappable(scale, _COLOURS)
    bar = figure.colorbar(shown, ax=list(grid), extend="both", aspect=max(8, 4 * len(strips)), pad=0.01, fraction=0.02)
    bar.set_label("delta log-likelihood", color=_INK)
    figure.suptitle(_title(strips), x=0.01, ha="left", color=_INK)
    save(figure, picture)


def _stretches(table: Path) -> list[_Stretch]:
    rows = read_rows(table)
    columns = next(rows)
    chrom, pos, ref, alt, delta = (columns.index(name) for name in ("chrom", "pos", "ref", "alt", "delta"))
    stretches: list[_Stretch] = []
    count = 0
    for row in rows:
        contig, place = row[chrom], int(row[pos])
        last = stretches[-1] if stretches else None
        if last is None or last.contig != contig or not last.end - 1 <= place <= last.end + _GAP:
            last = _Stretch(contig, place)
            stretches.append(last)
        while place >= last.end:
            count += 1
            if count > MOST_BASES:
                raise DataError(f"a picture shows at most {MOST_BASES:,} positions, and {table} has more").hint(
                    "draw a part of the regions; the table itself is whole"
                )
            last.bases.append(row[ref] if place == last.end else "")
            last.deltas.append(np.full(len(_BASES), np.nan))
        if row[delta] != "NA":
            last.deltas[-1][_BASES.index(row[alt])] = float(row[delta])
    return stretches


def _strips(stretches: Sequence[_Stretch]) -> list[_Stretch]:
    """Stretches cut to the width of the picture."""
    return [
        _Stretch(
            one.contig,
            one.first + start,
            one.bases[start : start + _ROW_BASES],
            one.deltas[start : start + _ROW_BASES],
        )
        for one in stretches
        for start in range(0, len(one.bases), _ROW_BASES)
    ]


def _draw(axes: Axes, strip: _Stretch, scale: Normalize, width: int) -> None:
    axes.imshow(
        np.stack(strip.deltas, axis=1),
        cmap=_COLOURS,
        norm=scale,
        aspect="auto",
        interpolation="nearest",
        extent=(strip.first - 0.5, strip.end - 0.5, len(_BASES) - 0.5, -0.5),
    )
    marked = [(strip.first + place, _BASES.index(base)) for place, base in enumerate(strip.bases) if base]
    axes.plot(*zip(*marked, strict=True), ls="", marker="o", ms=2.5, color=_INK)
    axes.set_yticks(range(len(_BASES)), list(_BASES))
    # a base is as wide in every strip
    axes.set_xlim(strip.first - 0.5, strip.first + width - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(colors=_INK, labelsize=8)
    axes.spines[:].set_visible(False)


def _title(strips: Sequence[_Stretch]) -> str:
    first, last = strips[0], strips[-1]
    end = f"{last.end - 1:,}" if first.contig == last.contig else f"{last.contig}:{last.end - 1:,}"
    text = f"{first.contig}:{first.first:,} to {end}, each base changed to the three others (dots: the reference's own)"
    return text.replace("$", r"\$")
