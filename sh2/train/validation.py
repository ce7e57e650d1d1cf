"""The validation of a model: its loss and bits per base on held-out windows, always the same ones."""

from dataclasses import dataclass

import torch

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.loader import Loader, WindowSource
from sh2.train.loss import NATS_TO_BITS
from sh2.train.team import Team
from sh2.train.windows import micro_batch_sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Means over the whole held-out set."""

    loss: float  # nats, weighted as in training
    bits_per_base: float  # plain mean over the bases of positive weight, upper and lower case alike


@torch.no_grad()
def validate(model: StripedHyena2, source: WindowSource, config: TrainConfig, team: Team) -> Validation:
    """Score the first `config.valid_windows` windows of the source, or a whole epoch of it if that is shorter.

    Raises:
        Sh2Error: the windows hold no base to predict.
    """
    count = min(config.valid_windows, len(source))
    parts = [(first, min(config.batch_size, count - first)) for first in range(0, count, config.batch_size)]
    device = model.embedding.weight.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    weight = 0.0
    with Loader(source, parts, pinned=device.type == "cuda") as loader:
        for _ in parts:
            batch = loader.next()
            weight += batch.weight
            sums = micro_batch_sums(model, batch, slice(None), config, team)
            totals += torch.stack([part.double() for part in sums])
    nats, base_nats, bases = team.sum(totals).tolist()
    if not bases:
        raise Sh2Error(f"the {count} validation windows hold no base to predict").hint(
            "raise `valid_windows`, or set it to 0 to train without validation"
        )
    return Validation(loss=nats / weight if weight else 0.0, bits_per_base=base_nats / bases * NATS_TO_BITS)
