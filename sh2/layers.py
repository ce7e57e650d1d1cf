"""The parts of a block that see one token at a time: RMSNorm and the gated MLP."""

# B batch, L length, D width, I inner width of the MLP

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import Backend, rms_norm, rms_norm_and_sum
from sh2.config import Activation

_Module = TypeVar("_Module", bound=nn.Module)


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """A linear layer whose weights are left for `sh2.initialize` to set."""
    return unset(nn.Linear, inputs, outputs, bias=bias)


def unset(kind: Callable[..., _Module], *arguments: int, bias: bool) -> _Module:
    """Make a layer without numbers.

    As `torch.nn.utils.skip_init`, but a layer that stays on the meta device stays what it is: to copy it there would
    load torch's compiler, for seconds.
    """
    layer, device = kind(*arguments, bias=bias, device="meta"), torch.get_default_device()
    return layer if device.type == "meta" else layer.to_empty(device=device)


class RMSNorm(nn.Module):
    """y = scale * x / (rms(x) + eps), in float32 or better, rounded once. The eps is on the root, not under it."""

    backend: Backend = Backend.AUTO  # set by `StripedHyena2.use_backend`

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return rms_norm(x_BLD, self.scale, self.eps, backend=self.backend)

    def and_sum(self, x_BLD: Tensor, bias_D: Tensor) -> tuple[Tensor, Tensor]:
        """norm(x), and x + bias, of which x is read once."""
        return rms_norm_and_sum(x_BLD, self.scale, bias_D, self.eps, backend=self.backend)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the non-linearity of the MLP's gate."""
    match activation:
        case Activation.GELU:
            return F.gelu(x)
        case Activation.SILU:
            return F.silu(x)
        case Activation.IDENTITY:
            return x


class GatedMLP(nn.Module):
    """y = down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.gate = linear(width, inner_width, bias=False)
        self.up = linear(width, inner_width, bias=False)
        self.down = linear(inner_width, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(self.inner(x_BLD))

    def inner(self, x_BLD: Tensor) -> Tensor:
        """What `down` narrows [B, L, I]."""
        return activate(self.gate(x_BLD), self.activation) * self.up(x_BLD)
