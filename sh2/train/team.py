"""Who trains: one process, or many that share windows, their length, channels and weights. Knows nothing of files.

The numbers of a step are those of one process whatever the team, up to the order of sums: weights of the loss are made
of whole windows before these are shared, and what processes add is summed before anything is done with it.
"""

# B batch, L length

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sh2.checkpoint.tensors import LazyTensor
from sh2.errors import Sh2Error
from sh2.parallel.mesh import Parallel
from sh2.parallel.processes import Processes
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch

Value = TypeVar("Value")
Parts = Mapping[str, Tensor]


class Team(Protocol):
    """What the loop asks of whoever trains with it."""

    leads: bool
    """Whether this process talks, and writes what is not shared out."""
    rank: int
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

    def every(self, value: Value) -> list[Value]:
        """What each process gives, by rank; for the one thread that has to do with files."""

    def take(self, name: str, whole: LazyTensor) -> Tensor:
        """This process's part of a whole tensor of the model or the optimizer."""

    def whole(self, parts: Parts) -> Mapping[str, LazyTensor]:
        """The whole tensors of all parts, each to be read in one process, once, while all are `sending` theirs."""

    def sending(self, parts: Parts, to: Mapping[str, int]) -> AbstractContextManager[None]:
        """Within this, processes read whole tensors: each the ones that it is named for; it ends when all are read."""


class Alone:
    """One process, that has all of everything."""

    leads = True
    rank = 0
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

    def every(self, value: Value) -> list[Value]:
        return [value]

    def take(self, name: str, whole: LazyTensor) -> Tensor:
        return whole.read()

    def whole(self, parts: Parts) -> Mapping[str, LazyTensor]:
        return {name: LazyTensor.of(part) for name, part in parts.items()}

    def sending(self, parts: Parts, to: Mapping[str, int]) -> AbstractContextManager[None]:
        return nullcontext()


ALONE = Alone()


class Member:
    """One of many processes: what it does whatever they share."""

    def __init__(self, processes: Processes, parallel: Parallel) -> None:
        self._processes = processes
        self.processes, self.rank = processes.place.ranks, processes.place.rank
        self.leads, self.parallel = processes.leads, str(parallel)

    def any(self, flag: bool) -> bool:
        return self._processes.any(flag)

    def of_leader(self, make: Callable[[], Value]) -> Value:
        return self._processes.of_leader(make)

    def every(self, value: Value) -> list[Value]:
        return self._processes.every(value)


def own_windows(batch: HostBatch, rows: slice, *, share: int, among: int) -> HostBatch:
    """One of the equal shares of some windows; where there is none left, one that weighs nothing."""
    first, end, _ = rows.indices(len(batch.tokens))
    begin, stop = (first + (end - first) * place // among for place in (share, share + 1))
    if begin < stop:
        return batch.rows(slice(begin, stop))
    one = batch.rows(slice(first, first + 1))  # the others wait for a forward pass, whatever it counts
    return replace(one, weights=torch.zeros_like(one.weights))


def check_windows(config: TrainConfig, parallel: Parallel) -> None:
    """Refuse windows that cannot be shared out.

    Raises:
        Sh2Error: says of what their number must be a multiple.
    """
    if config.batch_size % parallel.dp:
        raise Sh2Error(
            f"the {config.batch_size} windows of a forward pass cannot be shared equally by dp={parallel.dp} processes"
        ).hint(f"give a `--batch-size` that is a multiple of {parallel.dp}: it counts the windows of all processes")


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
