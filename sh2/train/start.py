"""The weights that a run begins from: those of a stored model, copied into one that is there."""

from pathlib import Path

import torch
from torch import nn

from sh2.checkpoint.source import open_model
from sh2.checkpoint.tensors import check_tensors

# what a file may have beside weights: frequencies of another base, and scales of FP8
_EXTRA = ("inv_freq", "fp8_scales")


@torch.no_grad()
def begin_from(model: nn.Module, path_or_name: str | Path) -> None:
    """Copy the weights of a stored model, tensor by tensor, into a model of the same shape.

    Args:
        path_or_name: as for `sh2.load`.

    Raises:
        Sh2Error: there is no such model, it is damaged, or its shape is another.
    """
    own = model.state_dict()
    tensors = {
        name: lazy
        for name, lazy in open_model(path_or_name).tensors.items()
        if name in own or not name.endswith(_EXTRA)
    }
    check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in own.items()}, str(path_or_name))
    for name, tensor in own.items():
        tensor.copy_(tensors[name].read())
