"""A run of many processes, each with the whole model and windows of its own: for adapters, whose gradients are few.

Weights that are not trained need no one to share their gradients and moments with; a model too large for one process
is for `sh2.train.together`.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sh2.errors import Sh2Error
from sh2.parallel.mesh import Parallel
from sh2.parallel.processes import Processes
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.team import Alone, Member, check_windows, own_windows


class Copies(Member, Alone):
    """One of many processes; with the model it does as one that is alone."""

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
        super().__init__(processes, parallel)

    def part(self, batch: HostBatch, rows: slice) -> HostBatch:
        return own_windows(batch, rows, share=self.rank, among=self.processes)

    def sum(self, numbers: Tensor) -> Tensor:
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        for gradient, total in zip(_gradients(model), self._totals(model), strict=True):
            gradient.copy_(total)

    def gradient_norm(self, model: nn.Module, *, summed: bool) -> Tensor:
        return torch.nn.utils.get_total_norm(_gradients(model) if summed else list(self._totals(model)))

    def _totals(self, model: nn.Module) -> Iterator[Tensor]:
        """The sums over all processes, of one message."""
        gradients = _gradients(model)
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        pieces = total.split([gradient.numel() for gradient in gradients])
        return (piece.view_as(one) for piece, one in zip(pieces, gradients, strict=True))


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
