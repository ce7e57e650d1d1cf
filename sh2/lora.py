"""Low-rank adapters (LoRA, Hu et al. 2022): a few trained numbers beside linear layers that stay as they are.

A layer y = W x becomes y = W x + (alpha / rank) U V x, where V [rank, inputs] begins random and U [outputs, rank] at
zero, so that an adapted model begins as the model it was. Merged, it is a plain model again: W + (alpha / rank) U V.
Knows nothing of training or files.
"""

# L length, D inputs, E outputs, R rank

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from sh2.config import LINEAR_LAYERS, Lora
from sh2.errors import Sh2Error
from sh2.initialize import generator


class Adapter(nn.Module):
    """x -> (alpha / rank) U V x, beside a linear layer; it computes in the dtype of its input."""

    def __init__(self, layer: nn.Linear, lora: Lora) -> None:
        super().__init__()
        device = layer.weight.device
        self.hook: RemovableHandle | None = None
        self.lora = lora
        self.down = nn.Parameter(torch.empty(lora.rank, layer.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, lora.rank, device=device))

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BLR = F.linear(x_BLD, self.down.to(x_BLD.dtype))
        return F.linear(y_BLR, self.up.to(x_BLD.dtype)) * (self.lora.alpha / self.lora.rank)

    def product(self) -> Tensor:
        """What the adapter adds to its layer's weight [E, D], float32."""
        return (self.up.float() @ self.down.float()) * (self.lora.alpha / self.lora.rank)


def add_adapters(model: nn.Module, lora: Lora, *, seed: int) -> None:
    """Freeze a model and put an adapter beside each layer that is targeted; the model computes the same as before.

    Raises:
        Sh2Error: the model has adapters already, or no layer of that name.
    """
    if has_adapters(model):
        raise Sh2Error("the model has adapters already")
    model.requires_grad_(False)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in lora.targets
    ]
    if not layers:
        raise Sh2Error(f"the model has no layer called {' or '.join(lora.targets)}").hint(
            f"give other targets of {', '.join(LINEAR_LAYERS)}"
        )
    for name, layer in layers:
        adapter = Adapter(layer, lora)
        with torch.no_grad():
            source = generator(seed, f"{name}.adapter.down", adapter.down.device)
            adapter.down.normal_(0.0, 1 / math.sqrt(layer.in_features), generator=source)
        layer.adapter = adapter
        adapter.hook = layer.register_forward_hook(_add)


def _add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + layer.adapter(inputs[0]).to(output.dtype)


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was here."""
    return next(adapters_of(model), None) is not None


def adapters_of(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The adapters by the name of their layer."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name.removesuffix(".adapter"), module


def plain_state(model: nn.Module) -> dict[str, tuple[Tensor, Callable[[], Tensor]]]:
    """The tensors of the model without adapters that computes the same: of a plain model, its own.

    Returns:
        By name, a tensor of the shape and dtype, and what gives its values: one product is in memory at a time.
    """
    adapters = dict(adapters_of(model))
    return {
        name: (tensor, partial(_merged, tensor, adapters.get(name.removesuffix(".weight"))))
        for name, tensor in base_state(model).items()
    }


@torch.no_grad()
def _merged(tensor: Tensor, adapter: Adapter | None) -> Tensor:
    return tensor if adapter is None else (tensor.float() + adapter.product()).to(tensor.dtype)


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are there without the adapters."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".adapter." not in name}


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Turn an adapted model into a plain one, in place."""
    for name, adapter in list(adapters_of(model)):
        layer: Any = model.get_submodule(name)
        layer.weight.copy_(_merged(layer.weight, adapter))
        if adapter.hook is not None:
            adapter.hook.remove()
        del layer.adapter
