"""Clocks: the median time of a call on a CPU or GPU, and what the device can do at best. Knows no operator."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

_COLD_BYTES = 256 * 2**20  # several times the last-level cache of any GPU
_MOST_LEADS = 50
_GPU_BUDGET_SECONDS, _CPU_BUDGET_SECONDS = 0.3, 0.1  # for the repetitions of one call
_GPU_COPY_BYTES, _CPU_COPY_BYTES = 2**30, 2**26
_HOST_COPY_BYTES = 2**29
_GPU_MATMUL, _CPU_MATMUL = 8192, 1024

Prepare = Callable[[], Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The median time of a call, and the most memory that it and its inputs held (0 on a CPU: not counted there)."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the device does at best, as measured."""

    copy_bytes_per_second: float  # read plus written
    matmul_flops_per_second: float  # in bf16, if nothing else was asked for


class Stopwatch:
    """Times calls on one device.

    `prepare` is called before every repetition and returns what is timed; what it does itself is not counted. So a
    backward is timed alone: `prepare` runs the forward, which builds a fresh graph, and returns the backward.

    On a GPU the time is between two CUDA events. Before the first, a buffer far larger than the L2 cache is read, so
    that every repetition starts cold, and for long enough that the host has queued the whole call when the GPU reaches
    it: launch overhead is not counted unless the call itself waits for the GPU. On a CPU it is wall-clock time.
    """

    def __init__(self, device: str, *, least: int = 3) -> None:
        """Make ready. least: repetitions that are timed, however long one takes (up to a second)."""
        self._least = least
        self._gpu = torch.device(device).type == "cuda"
        if self._gpu and (index := torch.device(device).index) is not None:  # without one, the current GPU is meant
            torch.cuda.set_device(index)
        self._budget = _GPU_BUDGET_SECONDS if self._gpu else _CPU_BUDGET_SECONDS
        self._cold = torch.ones(_COLD_BYTES // 4, device=device) if self._gpu else None
        self._once(lambda: self._chill)
        self._cold_seconds = self._once(lambda: self._chill)

    def time(self, prepare: Prepare) -> Timing:
        """Return the median of as many repetitions as the budget holds, after a warm-up."""
        self._once(prepare)
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        launched, total = self._launch(prepare)
        peak = torch.cuda.max_memory_allocated() - _COLD_BYTES if self._gpu else 0
        if total > 1:
            return Timing(seconds=total, peak_bytes=peak)
        repeats = max(self._least, min(100, int(self._budget / total)))
        if not self._gpu:
            seconds = statistics.median(self._once(prepare) for _ in range(repeats))
        else:
            leads = min(_MOST_LEADS, 1 + math.ceil(3 * launched / self._cold_seconds))
            seconds = self._between_events(prepare, repeats, leads)
        return Timing(seconds=seconds, peak_bytes=peak)

    def _between_events(self, prepare: Prepare, repeats: int, leads: int) -> float:
        marks = []
        for _ in range(repeats):
            call = prepare()
            for _ in range(leads):
                self._chill()
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            stop.record()
            del call  # and what it holds, before the next is prepared
            marks.append((start, stop))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) for start, stop in marks) / 1e3

    def _chill(self) -> None:
        # a read: what it leaves in the cache need not be written back during the call
        if self._cold is not None:
            self._cold.sum()

    def _once(self, prepare: Prepare) -> float:
        return self._launch(prepare)[1]

    def _launch(self, prepare: Prepare) -> tuple[float, float]:
        """Run once; return the seconds until the call returned, and until it was done."""
        call = prepare()
        self._wait()
        began = perf_counter()
        call()
        launched = perf_counter() - began
        self._wait()
        return launched, perf_counter() - began

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()


def measure_ceilings(device: str, stopwatch: Stopwatch, dtype: torch.dtype = torch.bfloat16) -> Ceilings:
    """Time a copy of a tensor far larger than the caches, and a large matrix product, of random numbers."""
    gpu = torch.device(device).type == "cuda"
    size = _GPU_COPY_BYTES if gpu else _CPU_COPY_BYTES
    source = torch.randn(size // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy = stopwatch.time(lambda: lambda: target.copy_(source))
    return Ceilings(
        copy_bytes_per_second=2 * size / copy.seconds,
        matmul_flops_per_second=matmul_flops_per_second(device, stopwatch, dtype),
    )


def host_bytes_per_second(device: str, stopwatch: Stopwatch) -> float:
    """Time a copy from page-locked memory of the host to a GPU."""
    source = torch.zeros(_HOST_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return _HOST_COPY_BYTES / stopwatch.time(lambda: lambda: target.copy_(source, non_blocking=True)).seconds


def matmul_flops_per_second(device: str, stopwatch: Stopwatch, dtype: torch.dtype) -> float:
    """Time a large matrix product of random numbers."""
    side = _GPU_MATMUL if torch.device(device).type == "cuda" else _CPU_MATMUL
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    matmul = stopwatch.time(lambda: lambda: left @ right)
    return 2 * side**3 / matmul.seconds
