"""The loss: weighted cross entropy, summed, so that any split of a batch adds up. Knows nothing of models or files.

Shapes: B batch, L length, V vocab.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NATS_TO_BITS = 1 / math.log(2)


class LossSums(NamedTuple):
    """Sums over the positions of a batch, float32 scalars; divide the sums of all micro batches, not their ratios."""

    weighted_nats: Tensor  # sum of weight * negative log-likelihood; the gradient flows through this one
    base_nats: Tensor  # sum of negative log-likelihood over positions of positive weight, detached
    bases: Tensor  # how many those are


def loss_sums(logits_BLV: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> LossSums:
    """Return the sums that a batch adds to the loss.

    Args:
        logits_BLV: any float dtype; log-probabilities are taken in float32.
        targets_BL: int64 token ids.
        weights_BL: float32, 0 where a token is not to be predicted.
    """
    nats_BL = F.cross_entropy(logits_BLV.float().flatten(0, 1), targets_BL.flatten(), reduction="none")
    weights_BL = weights_BL.flatten()
    is_base_BL = weights_BL > 0
    return LossSums(
        weighted_nats=(nats_BL * weights_BL).sum(),
        base_nats=torch.where(is_base_BL, nats_BL.detach(), 0.0).sum(),
        bases=is_base_BL.sum(),
    )
