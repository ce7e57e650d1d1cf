"""What training asks of its data, and one forward pass over it. Knows nothing of where windows come from.

Shapes: B batch, L length.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sh2.train.compilation import compiled_loss_sums
from sh2.train.config import Precision, TrainConfig
from sh2.train.loss import LossSums, loss_sums


class WindowBatch(Protocol):
    """Some windows: token t + 1 is predicted from tokens 0 to t."""

    @property
    def tokens(self) -> npt.NDArray[np.uint8]:
        """[B, L + 1] token ids."""

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """[B, L] weight in the loss of predicting tokens[:, 1:]."""

    @property
    def document_starts(self) -> npt.NDArray[np.bool_]:
        """[B, L + 1] True where a token is the first of its document."""


class WindowSource(Protocol):
    """An endless, numbered stream of windows; any part of it can be asked for, at any time, with the same answer."""

    def __len__(self) -> int:
        """Windows in one epoch."""

    def batch(self, first: int, count: int) -> WindowBatch:
        """Return windows `first` to `first + count - 1`."""


def micro_batch_sums(
    model: nn.Module, batch: WindowBatch, rows: slice, config: TrainConfig, device: torch.device
) -> LossSums:
    """Run the model over some windows of a batch and return their sums, with gradients where they are enabled."""
    tokens_BL = _to_device(batch.tokens[rows], device).long()
    starts_BL = _to_device(batch.document_starts[rows, :-1], device) if config.reset_documents else None
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision is Precision.BF16):
        logits_BLV, _ = model(tokens_BL[:, :-1], document_starts_BL=starts_BL)
    sums = compiled_loss_sums if config.compile else loss_sums
    return sums(logits_BLV, tokens_BL[:, 1:], _to_device(batch.weights[rows], device))


def _to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
