"""Generated sequences beside real ones: how far apart they are in what they are made of, and the picture of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.composition import Composition, compose, draw_pieces, jensen_shannon, kolmogorov_smirnov
from data.errors import DataError
from data.reader import read_records
from data.sequence import to_upper_dna
from evo_cli.outputs.picture import blank, entitle, save

COLUMNS = ("metric", "samples", "reference", "drawn", "distance", "distance_drawn")
Counts = NDArray[Any]

_SAMPLES, _REFERENCE, _DRAWN = "#d1602f", "#3b6ea5", "#9a9a9a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """What the samples, the reference, and pieces drawn from the reference are made of."""

    samples: Composition
    reference: Composition
    drawn: Composition

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Rows of `COLUMNS`; NA where there is no number."""
        yield "bases", *(str(one.bases) for one in self._all()), "NA", "NA"
        yield "gc", *(_cell(_gc(one)) for one in self._all()), *self._distances(lambda one: one.gc, smooth=True)
        for k in self.samples.kmers:
            seen = (str(int((one.kmers[k] > 0).sum())) for one in self._all())
            yield f"{k}-mers", *seen, *self._distances(partial(_kmers, k))
        yield "orfs_per_kb", *(_cell(1000 * len(one.orfs) / one.bases) for one in self._all()), "NA", "NA"
        lengths = (_cell(float(one.orfs.mean()) if len(one.orfs) else float("nan")) for one in self._all())
        yield "orf_codons", *lengths, *self._distances(lambda one: one.orfs, smooth=True)
        counts = (str(int(one.codons.sum())) for one in self._all())
        yield "codons", *counts, *self._distances(lambda one: one.codons)

    def _all(self) -> tuple[Composition, Composition, Composition]:
        return self.samples, self.reference, self.drawn

    def _distances(self, part: Callable[[Composition], Counts], *, smooth: bool = False) -> tuple[str, str]:
        measure = kolmogorov_smirnov if smooth else jensen_shannon
        near, drawn = (_cell(measure(part(one), part(self.reference))) for one in (self.samples, self.drawn))
        return near, drawn


def _kmers(k: int, one: Composition) -> Counts:
    return one.kmers[k]


def _gc(one: Composition) -> float:
    return float(one.kmers[1][1:3].sum()) / one.bases


def _cell(value: float) -> str:
    return "NA" if np.isnan(value) else f"{value:.4f}"


def read_texts(path: str) -> list[bytes]:
    """The sequences of a file that have any.

    Raises:
        DataError: it cannot be read, or holds no A, C, G or T.
    """
    texts = [to_upper_dna(record.sequence) for record in read_records(path)]
    if not any(text.translate(None, b"ACGT") != text for text in texts):
        raise DataError(f"{path}: its records hold no A, C, G or T")
    return [text for text in texts if text]


def compare(
    samples: list[bytes], reference: list[bytes], *, largest_k: int, piece: int, shortest_orf: int, seed: int
) -> Likeness:
    """Count all three."""
    drawn = draw_pieces(reference, [len(text) for text in samples], seed)
    counted = [
        compose(texts, largest_k=largest_k, piece=piece, shortest_orf=shortest_orf)
        for texts in (samples, reference, drawn)
    ]
    return Likeness(samples=counted[0], reference=counted[1], drawn=counted[2])


def plot_likeness(likeness: Likeness, picture: Path, *, title: str) -> None:
    """Draw k-mer shares, GC, lengths of reading frames and codon shares; atomically, as PNG."""
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    figure = blank(9, 7)
    (kmers, gc), (orfs, codons) = figure.subplots(2, 2)
    k = max(likeness.samples.kmers)

    def shares(axes: Axes, name: str, samples: Counts, reference: Counts) -> None:
        x, y = (counts / max(1, counts.sum()) for counts in (reference, samples))
        axes.plot(x, y, ".", ms=3 if len(x) > 100 else 6, color=_SAMPLES, alpha=0.6)
        most = max(x.max(), y.max()) * 1.05
        axes.plot([0, most], [0, most], color="#333333", lw=0.8, ls=":")
        axes.set(xlabel=f"share of each {name}, reference", ylabel="samples")
        axes.ticklabel_format(style="sci", scilimits=(-2, 2))

    shares(kmers, f"{k}-mer", likeness.samples.kmers[k], likeness.reference.kmers[k])
    shares(codons, "codon", likeness.samples.codons, likeness.reference.codons)
    groups = [("samples", likeness.samples, _SAMPLES), ("reference", likeness.reference, _REFERENCE)]
    groups.append(("drawn from it", likeness.drawn, _DRAWN))
    codons_of = np.concatenate([one.orfs for _, one, _ in groups])
    for _, one, colour in groups:
        style = {"histtype": "step", "density": True, "color": colour, "lw": 1.4}
        if len(one.gc):
            gc.hist(one.gc, bins=np.linspace(0, 1, 51), **style)
        if len(one.orfs):
            orfs.hist(one.orfs, bins=np.geomspace(codons_of.min(), max(2000, codons_of.max()), 40), **style)
    gc.set(xlabel="share of G and C of a piece", ylabel="density")
    orfs.set(xlabel="codons of a reading frame", ylabel="density", xscale="log", yscale="log")
    for axes in (kmers, gc, orfs, codons):
        axes.spines[["top", "right"]].set_visible(False)
    # of all three, also where none is as long as a piece
    handles = [Line2D([], [], color=colour, lw=1.4, label=name) for name, _, colour in groups]
    gc.legend(handles=handles, fontsize=8, frameon=False)
    entitle(figure, title)
    save(figure, picture)
