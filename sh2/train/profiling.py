"""A trace of one step, for whoever wants to see where its time goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@contextmanager
def profiled(path: Path, device: torch.device) -> Iterator[None]:
    """Write what runs within this, on the host and the device, as a trace for chrome://tracing or Perfetto (gzip)."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)  # what is still running is of the step before
    with profile(activities=activities, record_shapes=True) as trace:
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    partial = path.with_name(f".partial-{path.name}")
    trace.export_chrome_trace(str(partial))
    partial.replace(path)
