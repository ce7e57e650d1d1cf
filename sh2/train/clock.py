"""How fast a run is: seconds of steps and of waiting for data, between two reports, and what a device could do."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter

import torch

from sh2.bench.timing import Stopwatch, matmul_flops_per_second
from sh2.train.config import Precision, TrainConfig
from sh2.train.records import SpeedRecord


class Clock:
    """Adds up time since the last report; validations and checkpoints are not part of a step."""

    def __init__(self, device: torch.device, config: TrainConfig, *, flops_per_step: int) -> None:
        """Take the device that is timed. flops_per_step: its arithmetic in an update."""
        self._device = device
        self._tokens_per_step = config.windows_per_step * config.length
        self._flops_per_step = flops_per_step
        self._peak = config.peak_tflops * 1e12 or None
        self._dtype = torch.bfloat16 if config.precision is Precision.BF16 else torch.float32
        self._seconds = {"work": 0.0, "data": 0.0}
        self._last_step: int | None = None

    def begin(self, step: int) -> None:
        """Start counting after this step; first measure what the device does at best, if nobody said."""
        self._last_step = step
        if self._peak is None:
            self._peak = _measured_peak(str(self._device), self._dtype, torch.get_num_threads())
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

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
        if steps < 1 or not work or self._peak is None:
            return None
        rate = steps * self._flops_per_step / work
        return SpeedRecord(
            step=step,
            tokens_per_second=steps * self._tokens_per_step / work,
            step_seconds=work / steps,
            data_seconds=data / steps,
            peak_memory_bytes=self._peak_memory(),
            tflops=rate / 1e12,
            mfu=rate / self._peak,
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


@cache
def _measured_peak(device: str, dtype: torch.dtype, threads: int) -> float:
    rate = matmul_flops_per_second(device, Stopwatch(device), dtype)
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    return rate
