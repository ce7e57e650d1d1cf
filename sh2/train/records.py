"""What a run writes down: a deterministic line a step, and apart from it whatever depends on the clock.

Knows nothing of models.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sh2.errors import Sh2Error


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One line of `metrics.jsonl`: the same bytes in every run of the same configuration, data and machine."""

    step: int  # counted from 1
    loss: float  # nats, the weighted mean that is minimised, before the update
    bits_per_base: float | None  # plain mean over the bases of positive weight; None where there are none
    lr: float
    grad_norm: float  # global, before clipping
    tokens: int  # predicted by the model since the start, those of weight 0 included
    valid_loss: float | None = None
    valid_bits_per_base: float | None = None

    def to_json(self) -> str:
        """Return one line without its end; a field that was not measured at this step is left out."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, allow_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRecord:
    """One line of `speed.jsonl`: means over the steps since the line before."""

    step: int
    tokens_per_second: float
    step_seconds: float
    data_seconds: float  # of a step, spent waiting for windows
    peak_memory_bytes: int  # of the device; of the process where the device is the CPU
    tflops: float | None = None  # arithmetic of the model a second, of a forward and its backward, nothing made again
    mfu: float | None = None  # that over `peak_tflops`, or over what a large matrix product does here
    # of about the last hundred updates: targets of an update beyond which more help little; see `NoiseScale`
    noise_scale: float | None = None


class JsonLines:
    """A file of JSON lines that others may read while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, lines: list[str]) -> None:
        """Hand the lines over to the system; a kill leaves at most the last one torn.

        Raises:
            Sh2Error: the disk is full, or gone.
        """
        rest = "".join(f"{line}\n" for line in lines).encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise Sh2Error(f"cannot write {self._path}: {error.strerror}").hint(
                "make room, then go on with `--resume`"
            ) from None

    def sync(self) -> None:
        """Return once everything appended has reached the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class NoLines(JsonLines):
    """The lines of a process that leaves writing to another."""

    def __init__(self, path: Path) -> None:
        super().__init__(Path(os.devnull))

    def sync(self) -> None:
        """There is no disk."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines, up to a torn last line; nothing if there is no file.

    Raises:
        Sh2Error: a line that is not the last is not JSON.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise Sh2Error(f"{path}, line {number}: not JSON") from None


def keep_steps(path: Path, last: int) -> None:
    """Cut a file of records back to those of steps 1 to `last`, so that a resumed run goes on as if never stopped.

    Raises:
        Sh2Error: the file lacks one of those steps, so it is not the record of this run.
    """
    if not path.exists() and last == 0:
        return
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = lines[:last]
    for number, line in enumerate(kept, start=1):
        if not line.endswith(b"\n") or not line.startswith(b'{"step": %d,' % number):
            raise Sh2Error(f"{path}, line {number}: not the record of step {number}").hint(
                "the file was edited or is damaged; train into another folder"
            )
    if len(kept) < last:
        raise Sh2Error(f"{path} ends at step {len(kept)}, but the checkpoint is of step {last}").hint(
            "the file was edited or is damaged; train into another folder"
        )
    write_atomically(path, b"".join(kept))


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file, so that a reader, or a kill, sees the old content or the new one and nothing between."""
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people to read, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
