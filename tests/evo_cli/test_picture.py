"""Titles of pictures: all of them is seen, however narrow the picture."""

import pytest

from evo_cli.outputs.picture import blank, entitle


@pytest.mark.parametrize("width", [2.0, 4.0, 8.0])
@pytest.mark.parametrize(
    "title", ["short", "/a/path/of/some/length/model: a needle of 100, cue of 32, $x_1$ and more", "unbroken_" * 12]
)
def test_a_title_stays_inside(width: float, title: str) -> None:
    figure = blank(width, 3.0)
    figure.subplots().plot([0, 1])
    entitle(figure, title)
    figure.canvas.draw()
    (text,) = figure.texts
    box = text.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert text.get_text().replace("\n", "").replace(" ", "") == title.replace("$", r"\$").replace(" ", "")
