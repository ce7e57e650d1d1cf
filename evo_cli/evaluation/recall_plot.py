"""The picture of recall: accuracy by length and depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evo_cli.outputs.picture import blank, entitle, save

if TYPE_CHECKING:
    from sh2.reading.recall import Recall


def plot_recall(results: "Sequence[Recall]", picture: Path, *, title: str) -> None:
    """Draw a heat map, lengths across and depths down; atomically, as PNG."""
    lengths = list(dict.fromkeys(one.length for one in results))
    depths = list(dict.fromkeys(one.depth for one in results))
    values = np.array([one.accuracy for one in results]).reshape(len(lengths), len(depths)).T
    figure = blank(2.2 + 0.9 * len(lengths), 1.6 + 0.42 * len(depths))
    axes = figure.subplots()
    # a quarter is what guessing gives
    image = axes.imshow(values, vmin=0.25, vmax=1.0, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value < 0.7 else "black"
        )
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="length, bases", ylabel="depth of the needle")
    entitle(figure, title)
    figure.colorbar(image, ax=axes, label="share of bases recalled")
    save(figure, picture)
