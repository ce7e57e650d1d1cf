"""One update: forward and backward of its windows, and the optimizer's step. Never waits for the device."""

import torch
from torch import Tensor

from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.passes import Passes
from sh2.train.team import Team


class Updates:
    """Makes the updates of a run, one after the other."""

    def __init__(self, model: StripedHyena2, optimizer: torch.optim.Optimizer, config: TrainConfig, team: Team) -> None:
        self._model, self._optimizer, self._config, self._team = model, optimizer, config, team
        self.passes = Passes(model, config, team)

    def make(self, batch: HostBatch, *, lr: float) -> Tensor:
        """Make one update and return its numbers, still on the device.

        Returns:
            float64 [5]: the loss, nats over bases, bases, the norm of the gradient before clipping, and that of the
            first forward pass alone where there are several (0 where there is one).
        """
        model, optimizer, config, team = self._model, self._optimizer, self._config, self._team
        device = model.embedding.weight.device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        first_norm = torch.zeros((), device=device)
        self.passes.begin(batch)
        for first in range(0, config.windows_per_step, config.batch_size):
            sums += self.passes.run(batch, slice(first, first + config.batch_size))
            if first == 0 and config.accumulation > 1:
                first_norm = team.gradient_norm(model, summed=False)
        team.sum_gradients(model)
        norm = team.gradient_norm(model, summed=True)
        if config.clip:
            team.clip(model, norm, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return torch.cat([team.sum(sums), torch.stack([norm, first_norm]).double()])
