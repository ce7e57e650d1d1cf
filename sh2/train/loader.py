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

_AHEAD = 2  # groups of batches made before they are asked for
_TOGETHER = 1 << 20  # tokens of a group: to make small batches one by one is to wait for a thread each time


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
        return cls.parts(batch, [slice(None)], pinned=pinned)[0]

    @classmethod
    def parts(cls, batch: WindowBatch, parts: Iterable[slice], *, pinned: bool) -> list[Self]:
        """Take over a batch as several; they share its memory."""
        tokens, weights, document_starts = (
            _tensor(array, pinned) for array in (batch.tokens, batch.weights, batch.document_starts)
        )
        return [
            cls(
                tokens=tokens[rows],
                weights=weights[rows],
                document_starts=document_starts[rows],
                weight=float(batch.weights[rows].sum(dtype="float64")),
            )
            for rows in parts
        ]

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
        self._windows = 1  # of a group, until it is known how long they are
        self._following = next(self._wanted, None)
        self._ahead: deque[Future[list[HostBatch | Exception]]] = deque()
        self._ready: deque[HostBatch | Exception] = deque()
        self._order()

    def next(self) -> HostBatch:
        """Return the next batch, waiting for it if need be; whatever the source raises is raised here."""
        if not self._ready:
            group = self._ahead.popleft()
            self._order()
            self._ready.extend(group.result())
        batch = self._ready.popleft()
        if isinstance(batch, Exception):
            raise batch
        self._windows = _TOGETHER // batch.tokens.shape[1]
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _order(self) -> None:
        while len(self._ahead) < _AHEAD and (group := self._group()):
            self._ahead.append(self._thread.submit(self._make, group))

    def _group(self) -> list[tuple[int, int]]:
        """The next batch, and as many after it as follow in the stream and are not too long together."""
        group: list[tuple[int, int]] = []
        while self._following is not None:
            first, count = self._following
            if group and (first != sum(group[-1]) or first + count - group[0][0] > self._windows):
                break
            group.append(self._following)
            self._following = next(self._wanted, None)
        return group

    def _make(self, group: list[tuple[int, int]]) -> list[HostBatch | Exception]:
        begin, end = group[0][0], sum(group[-1])
        try:
            batch = self._source.batch(begin, end - begin)
        except Exception as error:
            if len(group) == 1:
                return [error]
            # those before the one that cannot be made are given
            return [one for numbers in group for one in self._make([numbers])]
        parts = (slice(first - begin, first - begin + count) for first, count in group)
        return list(HostBatch.parts(batch, parts, pinned=self._pinned))


def _tensor(array: npt.NDArray[Any], pinned: bool) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if pinned else tensor
