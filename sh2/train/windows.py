"""One forward pass over windows, up to what they add to the loss. Knows nothing of where windows come from."""

# B batch, L length, D width

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sh2.model import StripedHyena2
from sh2.recompute import LOGITS_PIECE
from sh2.train.compilation import compiled_loss_sums
from sh2.train.config import Precision, TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.loss import LossSums, loss_sums
from sh2.train.team import Team


def micro_batch_sums(model: StripedHyena2, batch: HostBatch, rows: slice, config: TrainConfig, team: Team) -> LossSums:
    """Run the model over this process's share of some windows and return their sums, with gradients where enabled."""
    device = model.embedding.weight.device
    batch = team.part(batch, rows)
    tokens_BL, weights_BL = (whole.to(device, non_blocking=True) for whole in (batch.tokens, batch.weights))
    ids_BL, targets_BL, weights_BL = map(team.shard, (tokens_BL[:, :-1].long(), tokens_BL[:, 1:].long(), weights_BL))
    sums = compiled_loss_sums if config.compile else loss_sums
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision is Precision.BF16):
        if config.reset_documents:
            x_BLD, _ = model.hidden(ids_BL, document_starts_BL=batch.document_starts[:, :-1])
        else:
            x_BLD = model.whole(ids_BL)
        return _in_pieces(partial(_sums, model, sums), x_BLD, targets_BL, weights_BL)


Sums = Callable[[Tensor, Tensor, Tensor], LossSums]


def _sums(model: StripedHyena2, sums: Sums, x_BLD: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> LossSums:
    return sums(model.logits(x_BLD), targets_BL, weights_BL)


def _in_pieces(sums: Sums, x_BLD: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> LossSums:
    """Sum over pieces of the sequences: logits in float32 are larger than what they are made of."""
    step = max(1, LOGITS_PIECE // x_BLD.shape[0])
    if x_BLD.shape[1] <= step:
        return sums(x_BLD, targets_BL, weights_BL)
    parts: list[LossSums] = [
        checkpoint(sums, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(*(whole.split(step, dim=1) for whole in (x_BLD, targets_BL, weights_BL)), strict=True)
    ]
    return LossSums(*(torch.stack(values).sum(dim=0) for values in zip(*parts, strict=True)))
