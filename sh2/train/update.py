"""One update: forward and backward of its windows, and the optimizer's step. Never waits for the device."""

import torch
from torch import Tensor

from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.team import Team
from sh2.train.windows import micro_batch_sums


def update(
    model: StripedHyena2,
    optimizer: torch.optim.Optimizer,
    batch: HostBatch,
    config: TrainConfig,
    team: Team,
    *,
    lr: float,
) -> Tensor:
    """Make one update and return its numbers, still on the device.

    Returns:
        float64 [5]: the loss, nats over bases, bases, the norm of the gradient before clipping, and that of the first
        forward pass alone where there are several (0 where there is one).
    """
    device = model.embedding.weight.device
    scale = 1 / batch.weight if batch.weight else 0.0
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    first_norm = torch.zeros((), device=device)
    for first in range(0, config.windows_per_step, config.batch_size):
        micro = micro_batch_sums(model, batch, slice(first, first + config.batch_size), config, team)
        loss = micro.weighted_nats * scale
        loss.backward()
        sums += torch.stack([loss.detach().double(), micro.base_nats.double(), micro.bases.double()])
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
