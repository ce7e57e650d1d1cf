"""Forward and backward passes of an update. On a GPU they are recorded: it outruns the host that launches its kernels.

A pass is recorded once as a CUDA graph, on memory that stays where it is, and replayed from then on: one launch a pass,
of the same kernels in the same order, so with the same bits.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.team import Team
from sh2.train.windows import micro_batch_sums

log = logging.getLogger(__name__)

_EAGER_UPDATES = 2  # before one is recorded: they compile kernels and fill caches, which a recording must not
_MOST_NUMBERS = 1 << 26  # of the stream, in a pass: kernels of more outlast their launches; memory would only be held


class Passes:
    """The passes over the windows of an update; their gradients add up in the parameters."""

    def __init__(self, model: StripedHyena2, config: TrainConfig, team: Team) -> None:
        self._model, self._config, self._team = model, config, team
        self._device = model.embedding.weight.device
        # processes that wait for each other, and documents whose borders are read, are led by the host
        self.records = (
            self._device.type == "cuda"
            and team.processes == 1
            and not config.reset_documents
            and config.batch_size * config.length * model.config.width <= _MOST_NUMBERS
        )
        self._recording: _Recording | None = None
        self._updates = 0

    def begin(self, batch: HostBatch) -> None:
        """Begin an update of these windows, without gradients."""
        self._updates += 1
        if self.records and self._recording is None and self._updates > _EAGER_UPDATES:
            self._record(batch)
        if self._recording is not None:
            self._recording.begin()

    def run(self, batch: HostBatch, rows: slice) -> Tensor:
        """Run forward and backward over some of the windows.

        Returns:
            float64 [3], on the device: what they add to the loss of the update, nats over bases, bases.
        """
        scale = 1 / batch.weight if batch.weight else 0.0
        if self._recording is not None:
            return self._recording.run(batch.rows(rows), scale)
        return self._run(batch, rows, torch.full((), scale, device=self._device))

    def _run(self, batch: HostBatch, rows: slice, scale: Tensor) -> Tensor:
        sums = micro_batch_sums(self._model, batch, rows, self._config, self._team)
        loss = sums.weighted_nats * scale
        loss.backward()
        return torch.stack([loss.detach().double(), sums.base_nats.double(), sums.bases.double()])

    def _record(self, batch: HostBatch) -> None:
        like = batch.rows(slice(0, self._config.batch_size))
        try:
            self._recording = _Recording(self._model, self._run, like, adds_up=self._config.accumulation > 1)
        except RuntimeError as error:
            self.records = False
            self._model.zero_grad(set_to_none=True)
            log.warning("training launches every kernel: a pass could not be recorded as a CUDA graph: %s", error)


_Run = Callable[[HostBatch, slice, Tensor], Tensor]


class _Recording:
    """A pass as a CUDA graph."""

    def __init__(self, model: nn.Module, run: _Run, like: HostBatch, *, adds_up: bool) -> None:
        """Record; nothing runs.

        Args:
            run: the pass.
            like: as many windows as a pass takes.
            adds_up: a pass adds to the gradients of those before it; if not, it puts its own in their place.

        Raises:
            RuntimeError: something in the pass cannot be recorded, or there is no memory for it.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = parameters[0].device
        tokens, weights = (torch.empty_like(part, device=device) for part in (like.tokens, like.weights))
        self._windows, self._adds_up = replace(like, tokens=tokens, weights=weights), adds_up
        self._scale = torch.empty((), device=device)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if adds_up else None
        self._sums, self._graph = _recorded(partial(run, self._windows, slice(None), self._scale), device)
        self._gradients = [(one, one.grad) for one in parameters if one.grad is not None]

    def begin(self) -> None:
        """Give the parameters the memory of their gradients back."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        if self._adds_up:
            torch._foreach_zero_([gradient for _, gradient in self._gradients])

    def run(self, part: HostBatch, scale: float) -> Tensor:
        """Replay over other windows; the sums are overwritten by the next."""
        self._windows.tokens.copy_(part.tokens, non_blocking=True)
        self._windows.weights.copy_(part.weights, non_blocking=True)
        self._scale.fill_(scale)
        self._graph.replay()
        return self._sums


def _recorded(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, torch.cuda.CUDAGraph]:
    """What `run` returns, with values once the graph has been replayed, and the graph."""
    graph = torch.cuda.CUDAGraph()
    # other threads pin windows and write checkpoints meanwhile
    recording = torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local")
    with torch.cuda.device(device), recording:
        return run(), graph


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: products take memory for each stream that they ran on, and keep it."""
    return torch.cuda.Stream(device)
