"""Progress on stderr: a live bar on a terminal, a plain line now and then where there is none.

Nothing here writes to stdout, which is for data. `rich` is imported when a bar is drawn, not before.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar(Protocol):
    """Shows how far something has come."""

    live: bool  # redrawn in place, so that updating it often costs no lines

    def update(self, done: float, total: float | None = None, fields: Mapping[str, str] | None = None) -> None:
        """Show that `done` of `total` is done, with some named values beside it."""

    def note(self, text: str) -> None:
        """Write a line that stays."""


@contextmanager
def progress_bar(
    label: str, *, total: float | None = None, start: float = 0, every_seconds: float = 10.0
) -> Iterator[Bar]:
    """Show the progress of one task on stderr while the block runs.

    Args:
        label: what is done, in one or two words.
        total: how much there is to do, if it is known already.
        start: how much of it was done before.
        every_seconds: least time between two plain lines, where stderr is no terminal; 0 prints every update.
    """
    if not sys.stderr.isatty():
        yield PlainBar(label, total=total, start=start, every_seconds=every_seconds, stream=sys.stderr)
        return
    with _live_display() as display:
        yield _LiveBar(display, label, total=total, start=start)


@contextmanager
def counter(
    label: str, *, total: float | None = None, unit: str = "", start: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a count on stderr while the block runs, from `start` on; yields what to call with every increase."""
    with progress_bar(f"{label} {unit}".strip(), total=total, start=start) as bar:
        done = start

        def advance(more: int) -> None:
            nonlocal done
            done += more
            bar.update(done)

        yield advance


class PlainBar:
    """Lines such as `train 120/500 (24%), loss 1.31, 00:41 left`."""

    live = False

    def __init__(
        self, label: str, *, total: float | None, every_seconds: float, stream: TextIO, start: float = 0
    ) -> None:
        self._label, self._total, self._every, self._stream, self._start = label, total, every_seconds, stream, start
        self._began = monotonic()
        self._printed = self._began if every_seconds else -1.0

    def update(self, done: float, total: float | None = None, fields: Mapping[str, str] | None = None) -> None:
        self._total = self._total if total is None else total
        now = monotonic()
        finished = self._total is not None and done >= self._total
        if not finished and self._every and now - self._printed < self._every:
            return
        self._printed = now
        values = [f"{name} {value}" for name, value in (fields or {}).items()]
        self.note(", ".join([self._position(done), *values, *self._left(done, now)]))

    def note(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _position(self, done: float) -> str:
        if not self._total:
            return f"{self._label} {done:,.0f}"
        return f"{self._label} {done:,.0f}/{self._total:,.0f} ({done / self._total:.0%})"

    def _left(self, done: float, now: float) -> list[str]:
        progress = done - self._start
        if not self._total or progress <= 0 or done >= self._total:
            return []
        return [f"{duration((now - self._began) / progress * (self._total - done))} left"]


class _LiveBar:
    """A bar of `rich`; values are redrawn in place."""

    live = True

    def __init__(self, display: "Progress", label: str, *, total: float | None, start: float) -> None:
        self._display = display
        self._task = display.add_task(label, total=total, completed=start, values="")  # type: ignore[arg-type]

    def update(self, done: float, total: float | None = None, fields: Mapping[str, str] | None = None) -> None:
        if total is not None:
            self._display.update(self._task, total=total)
        if fields is not None:
            values = "  ".join(f"[dim]{name}[/] {value}" for name, value in fields.items())
            self._display.update(self._task, values=values)
        self._display.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._display.console.print(text, markup=False, highlight=False)


def _live_display() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
    )


def duration(seconds: float) -> str:
    """Write a time as `00:41`, `12:05` or `3:20:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
