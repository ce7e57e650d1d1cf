"""The weights that a run begins from: those of a stored model, copied into one that is there."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sh2.checkpoint.source import open_model
from sh2.checkpoint.tensors import check_tensors
from sh2.model import StripedHyena2

# what a file may have beside weights: frequencies of another base, and scales of FP8
_EXTRA = ("inv_freq", "fp8_scales")


@torch.no_grad()
def begin_from(
    model: StripedHyena2, path_or_name: str | Path, put: Callable[[str, Tensor], None] | None = None
) -> None:
    """Copy the weights of a stored model, tensor by tensor, into a model of the same shape.

    Args:
        path_or_name: as for `sh2.load`.
        put: takes a whole tensor, where the model has but a share of each.

    Raises:
        Sh2Error: there is no such model, it is damaged, or its shape is another.
    """
    own = model.state_dict()
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in StripedHyena2(model.config).state_dict().items()}
    tensors = {
        name: lazy
        for name, lazy in open_model(path_or_name).tensors.items()
        if name in own or not name.endswith(_EXTRA)
    }
    check_tensors(tensors, shapes, str(path_or_name))
    for name, tensor in own.items():
        whole = tensors[name].read()
        tensor.copy_(whole) if put is None else put(name, whole)
