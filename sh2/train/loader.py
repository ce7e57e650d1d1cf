"""Windows made ahead of time: a thread makes those of the next steps while the device works on this one's.

Shapes: B batch, L length.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_AHEAD = 2  # batches made before they are asked for


class WindowBatch(Protocol):
    """Some windows: token t + 1 is predicted from tokens 0 to t."""

    @property
    def tokens(self) -> npt.NDArray[np.uint8]:
        """[B, L + 1] token ids."""

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """[B, L] weight in the loss of predicting tokens[:, 1:]."""

    @property
    def document_starts(self) -> npt.NDArray[np.bool_]:
        """[B, L + 1] True where a token is the first of its document."""


class WindowSource(Protocol):
    """An endless, numbered stream of windows; any part of it can be asked for, at any time, with the same answer."""

    def __len__(self) -> int:
        """Windows in one epoch."""

    def batch(self, first: int, count: int) -> WindowBatch:
        """Return windows `first` to `first + count - 1`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostBatch:
    """Windows in the host's memory, ready for the device; the fields of a `WindowBatch` as tensors."""

    tokens: Tensor  # uint8 [B, L + 1]
    weights: Tensor  # float32 [B, L]
    document_starts: Tensor  # bool [B, L + 1]
    weight: float  # the sum of the weights, taken in float64

    @classmethod
    def of(cls, batch: WindowBatch, *, pinned: bool) -> Self:
        """Take over a batch; pinned memory can be copied to a GPU while it works."""
        return cls(
            tokens=_tensor(batch.tokens, pinned),
            weights=_tensor(batch.weights, pinned),
            document_starts=_tensor(batch.document_starts, pinned),
            weight=float(batch.weights.sum(dtype="float64")),
        )

    def rows(self, rows: slice) -> "HostBatch":
        """Some of the windows; the weight stays that of all."""
        return replace(
            self,
            tokens=self.tokens[rows],
            weights=self.weights[rows],
            document_starts=self.document_starts[rows],
        )


class Loader:
    """Gives batches of a source in a fixed order, each made before it is asked for. A context manager.

    What a batch holds depends on its numbers alone: nothing is lost with what was made and not used.
    """

    def __init__(self, source: WindowSource, wanted: Iterable[tuple[int, int]], *, pinned: bool) -> None:
        """Begin to make batches.

        Args:
            wanted: number of the first window, and how many, of every batch.
            pinned: for a GPU.
        """
        self._source, self._wanted, self._pinned = source, iter(wanted), pinned
        # a new thread's GPU is the first, and pinning would take memory there
        prepare = partial(torch.cuda.set_device, torch.cuda.current_device()) if pinned else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="windows", initializer=prepare)
        self._ahead: deque[Future[HostBatch]] = deque()
        self._order()

    def next(self) -> HostBatch:
        """Return the next batch, waiting for it if need be; whatever the source raises is raised here."""
        batch = self._ahead.popleft()
        self._order()
        return batch.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _order(self) -> None:
        while len(self._ahead) < _AHEAD and (numbers := next(self._wanted, None)) is not None:
            self._ahead.append(self._thread.submit(self._make, *numbers))

    def _make(self, first: int, count: int) -> HostBatch:
        return HostBatch.of(self._source.batch(first, count), pinned=self._pinned)


def _tensor(array: npt.NDArray[Any], pinned: bool) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if pinned else tensor
