"""The validation of a model: its loss and bits per base on held-out windows, always the same ones."""

from dataclasses import dataclass

import torch
from torch import nn

from sh2.errors import Sh2Error
from sh2.train.config import TrainConfig
from sh2.train.loss import NATS_TO_BITS
from sh2.train.windows import WindowSource, micro_batch_sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Means over the whole held-out set."""

    loss: float  # nats, weighted as in training
    bits_per_base: float  # plain mean over the bases of positive weight, upper and lower case alike


@torch.no_grad()
def validate(model: nn.Module, source: WindowSource, config: TrainConfig, device: torch.device) -> Validation:
    """Score the first `config.valid_windows` windows of the source, or a whole epoch of it if that is shorter.

    Raises:
        Sh2Error: the windows hold no base to predict.
    """
    count = min(config.valid_windows, len(source))
    nats = base_nats = weight = bases = 0.0
    for first in range(0, count, config.batch_size):
        batch = source.batch(first, min(config.batch_size, count - first))
        sums = micro_batch_sums(model, batch, slice(None), config, device)
        nats += sums.weighted_nats.item()
        base_nats += sums.base_nats.item()
        bases += sums.bases.item()
        weight += float(batch.weights.sum(dtype="float64"))
    if not bases:
        raise Sh2Error(f"the {count} validation windows hold no base to predict").hint(
            "raise `valid_windows`, or set it to 0 to train without validation"
        )
    return Validation(loss=nats / weight if weight else 0.0, bits_per_base=base_nats / bases * NATS_TO_BITS)
