"""The picture of `evo eval markov`: bits per base by order."""

from collections.abc import Mapping
from pathlib import Path

from evo_cli.outputs.picture import blank, entitle, save


def plot_orders(bits_per_base: Mapping[int, float], picture: Path, *, title: str) -> None:
    """Draw the bits per base of every order; atomically, as PNG."""
    orders = sorted(bits_per_base)
    figure = blank(6, 4)
    axes = figure.subplots()
    axes.plot(orders, [bits_per_base[order] for order in orders], color="#3b6ea5", marker="o", ms=4, lw=1.4)
    best = min(orders, key=lambda order: bits_per_base[order])
    axes.annotate(
        f"{bits_per_base[best]:.4f}", (best, bits_per_base[best]), (0, 8), textcoords="offset points", ha="center"
    )
    axes.axhline(2.0, color="#333333", lw=0.8, ls=":", label="2 bits: four equal bases")
    axes.set_xticks(orders)
    axes.set(xlabel="order: bases before that are looked at", ylabel="bits per base")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    entitle(figure, title)
    save(figure, picture)
