"""A table as it is written: to stdout as rows come, or to a file that survives being killed.

Knows rows of cells, blocks of them, and counts by status; knows nothing of what the cells mean, nor of formats.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from evo_cli.inference import say
from evo_cli.outputs.metadata import Run
from evo_cli.outputs.partial import Finish, Partial, is_finished
from evo_cli.outputs.stream import is_stream, open_output


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A file to write: None is stdout; `maker` makes it of a partial file, None takes that as it is."""

    path: Path | None
    maker: Finish | None = None


class Table:
    """Rows, and for each output beside the table's a writer of bytes.

    rows: how many there are, those of an earlier run included. counts: rows by status. partial: the table's rows so
    far, in a file; None on stdout.
    """

    def __init__(self, writers: Sequence[Callable[[bytes], object]], mark: str | None, partial: Partial | None) -> None:
        self._write, *self.others = writers
        self._mark = mark
        self._partial = partial
        self.rows = partial.stand.rows if partial else 0
        self.counts = Counter(partial.stand.counts) if partial else Counter[str]()

    @property
    def path(self) -> Path | None:
        """The file that holds the rows so far (after `end_block` and a flush); None on stdout."""
        return self._partial.path if self._partial else None

    def begin(self, *headers: Sequence[str] | None) -> None:
        """Write the header of each output that has one, unless an earlier run has."""
        if self._partial and self._partial.stand.sizes[0]:
            return
        for write, columns in zip([self._write, *self.others], headers, strict=True):
            if columns is not None:
                write(line([*columns, *(["precision"] if self._mark else [])]))

    def write(self, cells: Iterable[str], status: str) -> None:
        """Write a row."""
        self._write(self.line(cells))
        self.rows += 1
        self.counts[status] += 1

    def line(self, cells: Iterable[str]) -> bytes:
        """A row of this table, or of one beside it: with the mark of its precision, if there is one."""
        return line([*cells, *([self._mark] if self._mark else [])])

    def end_block(self) -> None:
        """Say that the rows so far need none of those to come."""
        if self._partial:
            self._partial.end_block(self.rows, self.counts)

    def tell_counts(self, what: str) -> None:
        """Say how many rows there are of every status."""
        counts = ", ".join(f"{count:,} {status}" for status, count in self.counts.most_common()) or "none"
        say(f"{self.rows:,} {what}: {counts}")


def line(cells: Iterable[str]) -> bytes:
    """A row of a TSV."""
    return ("\t".join(cells) + "\n").encode()


@contextmanager
def open_table(outputs: Sequence[Output], run: Run, *, mark: str | None, overwrite: bool) -> Iterator[Table | None]:
    """Yield a table to write, or None if the outputs are finished already; when the block ends well, they are whole.

    Where all outputs are files and all inputs too, an interrupted run leaves its whole blocks behind for the next one:
    `rows` is then where to go on. An input that has to be mended makes them useless: they are removed.

    Args:
        outputs: the table first.
        mark: the last cell of every row, if there is to be one.
        overwrite: begin anew, whatever is there.

    Raises:
        DataError: as `Partial`.
    """
    paths = [output.path for output in outputs]
    files = [path for path in paths if path is not None and not is_stream(path)]
    if len(files) < len(paths):
        with ExitStack() as stack:
            streams = [stack.enter_context(open_output(path)) for path in paths]
            yield Table([_encoded(stream.write) for stream in streams], mark, None)
        return
    # what came from a pipe does not come again
    repeatable = all("size" in file for file in run.identity["inputs"].values())
    if repeatable and not overwrite and is_finished(files, run):
        say(f"{files[0]} is finished: nothing to do (--overwrite does it again)")
        yield None
        return
    with Partial(files, run, overwrite=overwrite or not repeatable) as partial:
        table = Table([file.write for file in partial.files], mark, partial)
        if table.rows:
            say(f"{files[0]}: going on after {table.rows:,} rows of an earlier run")
        try:
            yield table
        except BaseException as error:
            _leave(partial, useful=repeatable and not isinstance(error, DataError))
            raise
        partial.finish([output.maker for output in outputs])


def _leave(partial: Partial, *, useful: bool) -> None:
    """Keep the whole blocks of a run that fails, if they are of use."""
    if not useful or not partial.stand.rows:
        partial.discard()
        return
    partial.save()
    say(f"{partial.path}: holds {partial.stand.rows:,} rows; the same command goes on after them")


def _encoded(write: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda text: write(text.decode())
