"""Who trains: one process, or many that share windows, their length, channels and weights. Knows nothing of files.

The numbers of a step are those of one process whatever the team, up to the order of sums: weights of the loss are made
of whole windows before these are shared, and what processes add is summed before anything is done with it.
"""

# B batch, L length

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sh2.checkpoint.tensors import LazyTensor
from sh2.parallel.mesh import Parallel
from sh2.train.loader import HostBatch

Value = TypeVar("Value")
Parts = Mapping[str, Tensor]


class Team(Protocol):
    """What the loop asks of whoever trains with it."""

    leads: bool
    """Whether this process talks and writes."""
    processes: int
    parallel: str
    """How many processes share what, in full."""
    exchanges: bool
    """Whether processes exchange something within a block."""

    def part(self, batch: HostBatch, rows: slice) -> HostBatch:
        """This process's windows of some of a batch: at least one, though it may weigh nothing."""

    def shard(self, whole_BL: Tensor) -> Tensor:
        """This process's part of whole windows [B, L]."""

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes that have their own tokens."""

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients that are not summed yet."""

    def gradient_norm(self, model: nn.Module, *, summed: bool) -> Tensor:
        """The norm of the whole gradient, before `sum_gradients` or after it."""

    def clip(self, model: nn.Module, norm: Tensor, most: float) -> None:
        """Scale the summed gradient, whose norm this is, down to at most that."""

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""

    def of_leader(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the process that leads."""

    def take(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor of the model or the optimizer."""

    def send(self, parts: Parts) -> None:
        """Give parts to the process that leads."""

    def whole(self, parts: Parts) -> Mapping[str, LazyTensor]:
        """The whole tensors of all parts, where they are written."""


class Alone:
    """One process, that has all of everything."""

    leads = True
    processes = 1
    parallel = str(Parallel())
    exchanges = False

    def part(self, batch: HostBatch, rows: slice) -> HostBatch:
        return batch.rows(rows)

    def shard(self, whole_BL: Tensor) -> Tensor:
        return whole_BL

    def sum(self, numbers: Tensor) -> Tensor:
        return numbers

    def sum_gradients(self, model: nn.Module) -> None:
        """They are."""

    def gradient_norm(self, model: nn.Module, *, summed: bool) -> Tensor:
        gradients = [parameter.grad for parameter in _trained(model)]
        return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])

    def clip(self, model: nn.Module, norm: Tensor, most: float) -> None:
        torch.nn.utils.clip_grads_with_norm_(_trained(model), most, norm)

    def any(self, flag: bool) -> bool:
        return flag

    def of_leader(self, make: Callable[[], Value]) -> Value:
        return make()

    def take(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def send(self, parts: Parts) -> None:
        """There is nobody else."""

    def whole(self, parts: Parts) -> Mapping[str, LazyTensor]:
        return {name: LazyTensor.of(part) for name, part in parts.items()}


ALONE = Alone()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
