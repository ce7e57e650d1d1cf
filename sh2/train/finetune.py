"""Training a model together with a head on labelled sequences: its weights, or adapters beside them.

It begins with a head that was fitted to the model as it is, and ends with the best validation, which may be that one:
on the validation set the result is never worse than the frozen model. Knows nothing of files or DNA.
"""

# B batch, L length, D width, C outputs

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sh2.errors import Sh2Error
from sh2.heads import Head, Targets, loss_of
from sh2.model import StripedHyena2
from sh2.reading.sites import NORM, Pooling
from sh2.rerun import run_blocks
from sh2.train.config import Precision, TrainConfig
from sh2.train.optimizer import build_optimizer
from sh2.train.schedule import learning_rate

POOLINGS = (Pooling.MEAN, Pooling.LAST, Pooling.MAX)
"""Poolings that a model can be trained through."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labelled:
    """Token ids of sequences, int64 [L] each, and their labels."""

    ids: Sequence[NDArray[np.int64]]
    targets: Targets

    def some(self, places: NDArray[np.int64]) -> "Labelled":
        """The examples at these places."""
        values = self.targets.values[torch.from_numpy(places)]
        return Labelled(ids=[self.ids[place] for place in places], targets=replace(self.targets, values=values))

    def in_batches(self, size: int, order: NDArray[np.int64] | None = None) -> "Iterator[Labelled]":
        """The examples in an order, so many at a time."""
        order = np.arange(len(self.ids)) if order is None else order
        return (self.some(order[first : first + size]) for first in range(0, len(order), size))


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """Losses, as `sh2.heads.loss_of`, after an epoch; number 0 is the fitted head, before any."""

    number: int
    train_loss: float | None
    valid_loss: float


def finetune(
    model: StripedHyena2,
    head: Head,
    train: Labelled,
    valid: Labelled,
    config: TrainConfig,
    *,
    epochs: int,
    told: Callable[[Epoch], None] = lambda _: None,
) -> Head:
    """Train what of the model wants gradients, and the head; leave the model at the best validation, return its head.

    Args:
        model: in float32, on the configuration's device, with its choice of what is recomputed.
        config: batches are of sequences; `steps` are overruled by `epochs`.
        told: called after every epoch, and before the first.

    Raises:
        Sh2Error: the head's layer is no block and not the last norm, its pooling is not one of `POOLINGS`, or the loss
            is not finite.
    """
    if head.pooling not in POOLINGS:
        raise Sh2Error(f"a model cannot be trained through the pooling {head.pooling}").hint(
            f"use {', '.join(POOLINGS)}, or train the head alone"
        )
    if head.layer != NORM and not head.layer.removeprefix("blocks.").isdecimal():
        raise Sh2Error(f"a model cannot be trained through the layer {head.layer}").hint(
            "use a block or norm, or train the head alone"
        )
    per_epoch = math.ceil(len(train.ids) / config.batch_size)
    config = replace(config, steps=epochs * per_epoch)
    headed = _Headed(model, head)
    optimizer = build_optimizer(model, config)
    optimizer.add_param_group({"params": [headed.weight, headed.bias], "weight_decay": 0.0})
    # measurements come in any unit: their errors are told in standard deviations while clipping has a say
    unit = 1.0 if train.targets.classes else float(train.targets.values.var(correction=0)) or 1.0
    best, kept = _evaluate(headed, valid, config), headed.trained()
    told(Epoch(number=0, train_loss=None, valid_loss=best))
    for epoch in range(epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(train.ids))
        losses = [
            _update(headed, batch, optimizer, config, step=epoch * per_epoch + number, unit=unit)
            for number, batch in enumerate(train.in_batches(config.batch_size, order), start=1)
        ]
        loss = _evaluate(headed, valid, config)
        told(Epoch(number=epoch + 1, train_loss=float(np.mean(losses)), valid_loss=loss))
        if loss < best:
            best, kept = loss, headed.trained()
    headed.put_back(kept)
    return headed.head()


class _Headed(nn.Module):
    """A model up to the layer of a head, the pooling, and the head."""

    def __init__(self, model: StripedHyena2, head: Head) -> None:
        super().__init__()
        device = model.embedding.weight.device
        self.model, self._head = model, head
        self.weight = nn.Parameter(head.weight.to(device, copy=True))
        self.bias = nn.Parameter(head.bias.to(device, copy=True))
        self.mean, self.scale = head.mean.to(device), head.scale.to(device)

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Outputs [B, C] of rows of tokens, each padded behind its length: in a causal model no token sees the pads."""
        normed = self._head.layer == NORM
        last = len(self.model.blocks) if normed else int(self._head.layer.removeprefix("blocks.")) + 1
        x_BLD = run_blocks(list(self.model.blocks)[:last], self.model.embedding(ids_BL), self.model.recompute)
        if normed:
            x_BLD = self.model.norm(x_BLD)
        x_BD = pooled(x_BLD.float(), lengths_B, self._head.pooling)
        return nn.functional.linear((x_BD - self.mean) / self.scale, self.weight, self.bias)

    def trained(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: one.detach().clone() for name, one in self.named_parameters() if one.requires_grad}

    @torch.no_grad()
    def put_back(self, tensors: dict[str, Tensor]) -> None:
        """Undo what came after `trained`."""
        for name, parameter in self.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])

    def head(self) -> Head:
        """The head as it is."""
        return replace(self._head, weight=self.weight.detach().cpu().clone(), bias=self.bias.detach().cpu().clone())


def pooled(x_BLD: Tensor, lengths_B: Tensor, pooling: str) -> Tensor:
    """What `pooling` makes of the first `lengths_B` tokens of each row [B, D]."""
    inside_BL1 = (torch.arange(x_BLD.shape[1], device=x_BLD.device) < lengths_B[:, None])[..., None]
    match pooling:
        case Pooling.MEAN:
            return torch.where(inside_BL1, x_BLD, 0.0).sum(dim=1) / lengths_B[:, None]
        case Pooling.MAX:
            return x_BLD.masked_fill(~inside_BL1, -math.inf).amax(dim=1)
        case _:
            return x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), lengths_B - 1]


def _update(
    headed: _Headed, batch: Labelled, optimizer: torch.optim.AdamW, config: TrainConfig, *, step: int, unit: float
) -> float:
    loss = _loss(headed, batch, config)
    if not torch.isfinite(loss):
        raise Sh2Error(f"training diverged at step {step}: the loss is {loss.item()}").hint("lower `--lr`")
    (loss / unit).backward()
    torch.nn.utils.clip_grad_norm_(headed.parameters(), config.clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def _evaluate(headed: _Headed, data: Labelled, config: TrainConfig) -> float:
    batches = data.in_batches(config.batch_size)
    losses = [(_loss(headed, batch, config).item(), len(batch.ids)) for batch in batches]
    return sum(loss * count for loss, count in losses) / len(data.ids)


def _loss(headed: _Headed, batch: Labelled, config: TrainConfig) -> Tensor:
    device = headed.weight.device
    ids_BL = pad_sequence([torch.from_numpy(ids) for ids in batch.ids], batch_first=True).to(device)
    lengths_B = torch.tensor([len(ids) for ids in batch.ids], device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision is Precision.BF16):
        outputs_BC = headed(ids_BL, lengths_B)
    return loss_of(outputs_BC, batch.targets)
