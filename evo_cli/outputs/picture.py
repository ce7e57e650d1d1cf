"""Pictures: an empty one to draw on, without a screen, its title, and a drawn one to its file."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from data.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float, *, dpi: int = 150) -> "Figure":
    """A figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def entitle(figure: "Figure", title: str) -> None:
    """Write a title over a figure, in as many lines as its width asks for; names of files are not mathematics."""
    characters = int(12 * figure.get_figwidth())  # of 10 points: on average they are narrower
    lines = fill(title, characters, break_on_hyphens=False)
    figure.suptitle(lines.replace("$", r"\$"), x=0.01, ha="left", fontsize=10, color="#333333")


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, atomically."""
    with replacing(path.resolve()) as temporary:
        figure.savefig(temporary, format="png")
