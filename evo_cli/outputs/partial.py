"""Output that survives being killed: files that grow under other names until they are whole, and where they stand.

    OUT.partial         what is written so far; locked while a run writes it
    OUT.partial.json    the run's identity, and the sizes of the files at the end of the last block that is whole
    OUT, OUT.meta.json  in the end

A block is what was computed together: a run that begins where a block ends writes the bytes that one run would have
written. Knows bytes and blocks; knows nothing of rows or formats.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from data.atomic import replacing
from data.closing import Closing
from data.errors import DataError
from evo_cli.outputs.metadata import Run, difference

Finish = Callable[[Path, Path], None]
"""Makes the final file, its second argument, of a partial one."""
_SECONDS = 1.0  # between two notes of where the files stand


@dataclass(kw_only=True)
class Stand:
    """Where files stand at the end of a block."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)


def metadata_path(output: Path) -> Path:
    """Where the metadata of an output lie."""
    output = Path(os.path.realpath(output))
    return output.with_name(output.name + ".meta.json")


def partial_path(output: Path) -> Path:
    """Where an output lies until it is whole: beside the file that it stands for, if it is a link."""
    output = Path(os.path.realpath(output))
    return output.with_name(output.name + ".partial")


class Partial(Closing):
    """The files of one run, the first of them its table; use it as a context manager, and `finish` at the end.

    files: to append to. stand: what earlier runs left, and then what `end_block` was told.
    """

    def __init__(self, outputs: Sequence[Path], run: Run, *, overwrite: bool) -> None:
        """Open what an earlier run left, cut after its last whole block, or begin anew.

        Raises:
            DataError: another run is writing the files, or they are of a run with another identity.
        """
        self._outputs = [Path(os.path.realpath(output)) for output in outputs]
        self._paths = [partial_path(output) for output in self._outputs]
        self._state_path = self._paths[0].with_name(self._paths[0].name + ".json")
        self._identity = run.identity
        self.files: list[BinaryIO] = []
        try:
            for path in self._paths:
                self.files.append(_open_locked(path))
            self.stand, self._runs = self._earlier() if not overwrite else (self._nothing(), [])
            for file, size in zip(self.files, self.stand.sizes, strict=True):
                file.truncate(size)
                file.seek(size)
        except BaseException:
            self.close()
            raise
        self._runs = [*self._runs, {"first_row": self.stand.rows + 1, **run.environment, "seconds": 0.0}]
        self._began = self._noted = monotonic()

    @property
    def path(self) -> Path:
        """The table as far as it is written."""
        return self._paths[0]

    def end_block(self, rows: int, counts: Counter[str]) -> None:
        """Say that what was written so far is whole; now and then, put that on the disk."""
        self.stand = Stand(rows=rows, counts=Counter(counts), sizes=[file.tell() for file in self.files])
        if monotonic() - self._noted >= _SECONDS:
            self.save()

    def save(self) -> None:
        """Put all whole blocks on the disk, and note where they end."""
        for file in self.files:
            file.flush()
            os.fdatasync(file.fileno())
        self._runs[-1]["seconds"] = round(monotonic() - self._began, 1)
        with replacing(self._state_path) as temporary:
            state = {"rows": self.stand.rows, "counts": self.stand.counts, "sizes": self.stand.sizes}
            _write_json(temporary, {"identity": self._identity, "runs": self._runs, **state})
        self._noted = monotonic()

    def discard(self) -> None:
        """Remove the files: what they hold is of no use."""
        for path in (self._state_path, *self._paths):
            path.unlink(missing_ok=True)

    def finish(self, makers: Sequence[Finish | None]) -> None:
        """Make the outputs of the files, a maker each (None takes a file as it is), and write their metadata."""
        self.save()
        with ExitStack() as stack:
            finals = []
            for output, path, maker in zip(self._outputs, self._paths, makers, strict=True):
                final = path
                if maker is not None:
                    final = stack.enter_context(replacing(output))
                    maker(path, final)
                finals.append(final)
            about = {
                **self._identity,
                "rows": self.stand.rows,
                "counts": dict(self.stand.counts.most_common()),
                "runs": self._runs,
            }
            write_metadata(about, dict(zip(self._outputs, finals, strict=True)))
            for final, output in zip(finals, self._outputs, strict=True):
                if final == partial_path(output):
                    os.replace(final, output)
        self.discard()

    def close(self) -> None:
        """Close the files; what they hold stays."""
        for file in self.files:
            with suppress(OSError):  # a full disk has been told of already
                file.close()

    def _earlier(self) -> tuple[Stand, list[dict[str, Any]]]:
        """Where an earlier run stood, and what runs there were; nothing where none noted anything."""
        table = self._paths[0]
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return self._nothing(), []
        except (OSError, ValueError) as error:
            raise DataError(f"{self._state_path}: cannot be read: {error}").hint("--overwrite begins anew") from error
        if clause := difference(state["identity"], self._identity):
            raise DataError(f"{table}: was begun by another run: {clause}").hint(
                "repeat the earlier command to go on with it, give another output, or begin anew with --overwrite"
            )
        stand = Stand(rows=state["rows"], counts=Counter(state["counts"]), sizes=state["sizes"])
        sizes = [os.fstat(file.fileno()).st_size for file in self.files]
        if len(sizes) != len(stand.sizes) or any(map(int.__lt__, sizes, stand.sizes)):
            raise DataError(f"{table}: is not what the earlier run left: a part of it is missing").hint(
                "begin anew with --overwrite"
            )
        return stand, state["runs"]

    def _nothing(self) -> Stand:
        return Stand(sizes=[0] * len(self.files))


def write_metadata(about: dict[str, Any], outputs: Mapping[Path, Path]) -> None:
    """Write what is known of a run beside its first output.

    Args:
        outputs: the files, and where each of them lies until its name is its own.
    """
    looks = [_look(lies, output.name) for output, lies in outputs.items()]
    with replacing(metadata_path(next(iter(outputs)))) as temporary:
        _write_json(temporary, {**about, "outputs": looks})


def is_finished(outputs: Sequence[Path], run: Run) -> bool:
    """Whether the outputs are there, whole, unchanged since, and of a run with this identity."""
    try:
        about = json.loads(metadata_path(outputs[0]).read_text(encoding="utf-8"))
        found = [_look(output, output.name) for output in outputs]
    except (OSError, ValueError):
        return False
    identity = {key: about.get(key) for key in run.identity}
    return found == about.get("outputs") and difference(identity, run.identity) is None


def _look(path: Path, name: str) -> dict[str, Any]:
    status = path.stat()
    return {"name": name, "size": status.st_size, "modified_ns": status.st_mtime_ns}


def _open_locked(path: Path) -> BinaryIO:
    file = open(path, "ab+", buffering=1 << 20)  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise DataError(f"{path}: another run is writing it").hint("wait for it, or give another output") from error
    return file


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
