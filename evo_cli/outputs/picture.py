"""Pictures: an empty one to draw on, without a screen, and a drawn one to its file."""

from pathlib import Path
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


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, atomically."""
    with replacing(path.resolve()) as temporary:
        figure.savefig(temporary, format="png")
