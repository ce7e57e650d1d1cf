"""How fast a run is: seconds of steps and of waiting for data, between two reports."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

from sh2.train.records import SpeedRecord


class Clock:
    """Adds up time since the last report; validations and checkpoints are not part of a step."""

    def __init__(self, device: torch.device, *, tokens_per_step: int) -> None:
        self._device = device
        self._tokens_per_step = tokens_per_step
        self._seconds = {"work": 0.0, "data": 0.0}
        self._last_step: int | None = None

    def begin(self, step: int) -> None:
        """Start counting after this step."""
        self._last_step = step

    @contextmanager
    def work(self) -> Iterator[None]:
        """Time a part of a step, waiting for data included."""
        with self._timed("work"):
            yield

    @contextmanager
    def data(self) -> Iterator[None]:
        """Time a wait for data."""
        with self._timed("data"):
            yield

    def report(self, step: int) -> SpeedRecord | None:
        """Return the means since the last report and start anew; None if there was no step."""
        steps = step - (self._last_step or 0)
        work, data = self._seconds["work"], self._seconds["data"]
        self._seconds = {"work": 0.0, "data": 0.0}
        self._last_step = step
        if steps < 1 or not work:
            return None
        return SpeedRecord(
            step=step,
            tokens_per_second=steps * self._tokens_per_step / work,
            step_seconds=work / steps,
            data_seconds=data / steps,
            peak_memory_bytes=self._peak_memory(),
        )

    def _peak_memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[what] += perf_counter() - start
