"""A run of many processes, each with the whole model and windows of its own: for adapters, whose gradients are few.

Weights that are not trained need no one to share their gradients and moments with; a model too large for one process
is for `sh2.train.together`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sh2.checkpoint.tensors import LazyTensor
from sh2.errors import Sh2Error
from sh2.parallel.mesh import Parallel
from sh2.parallel.processes import Processes
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.team import ALONE, Parts, check_windows, own_windows

Value = TypeVar("Value")


class Copies:
    """One of many processes."""

    exchanges = False

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        """Agree on who has which windows.

        Raises:
            Sh2Error: the processes cannot share the windows, or are to share more than these.
        """
        parallel = Parallel.parse(config.parallel, processes.place.ranks)
        check_windows(config, parallel)
        if parallel.cp * parallel.tp > 1:
            raise Sh2Error(f"adapters are trained with dp alone, not {parallel}").hint(
                "leave out cp and tp, or `--lora-rank`"
            )
        self._processes = processes
        self.processes, self.rank = processes.place.ranks, processes.place.rank
        self.leads, self.parallel = processes.leads, str(parallel)

    def part(self, batch: HostBatch, rows: slice) -> HostBatch:
        return own_windows(batch, rows, share=self.rank, among=self.processes)

    def shard(self, whole_BL: Tensor) -> Tensor:
        return whole_BL

    def sum(self, numbers: Tensor) -> Tensor:
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        for gradient, total in zip(_gradients(model), self._totals(model), strict=True):
            gradient.copy_(total)

    def gradient_norm(self, model: nn.Module, *, summed: bool) -> Tensor:
        return torch.nn.utils.get_total_norm(_gradients(model) if summed else list(self._totals(model)))

    def clip(self, model: nn.Module, norm: Tensor, most: float) -> None:
        ALONE.clip(model, norm, most)

    def any(self, flag: bool) -> bool:
        return self._processes.any(flag)

    def of_leader(self, make: Callable[[], Value]) -> Value:
        return self._processes.of_leader(make)

    def every(self, value: Value) -> list[Value]:
        return self._processes.every(value)

    def take(self, name: str, whole: LazyTensor) -> Tensor:
        return ALONE.take(name, whole)

    def whole(self, parts: Parts) -> Mapping[str, LazyTensor]:
        return ALONE.whole(parts)

    def sending(self, parts: Parts, to: Mapping[str, int]) -> AbstractContextManager[None]:
        return nullcontext()

    def _totals(self, model: nn.Module) -> Iterator[Tensor]:
        """The sums over all processes, of one message."""
        gradients = _gradients(model)
        total = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(total)
        pieces = total.split([gradient.numel() for gradient in gradients])
        return (piece.view_as(one) for piece, one in zip(pieces, gradients, strict=True))


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
