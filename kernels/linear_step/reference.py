"""Linear layers with what surrounds them in a block, in plain torch."""

# D inputs, E outputs, I inner width; X any leading dimensions

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.rms_norm import reference

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "identity": torch.positive}


def linear_step(
    x_XD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None = None,
    *,
    scale_D: Tensor | None = None,
    eps: float = 0.0,
    onto_XE: Tensor | None = None,
) -> Tensor:
    """y = onto + weight norm(x) + bias, rounded after the norm, the layer and the sum."""
    if scale_D is not None:
        x_XD = reference.rms_norm(x_XD, scale_D, eps)
    y_XE = F.linear(x_XD, weight_ED, bias_E)
    return y_XE if onto_XE is None else onto_XE + y_XE


def gated_step(x_XD: Tensor, gate_ID: Tensor, up_ID: Tensor, *, scale_D: Tensor, eps: float, activation: str) -> Tensor:
    """y = act(gate norm(x)) * up norm(x), rounded after each."""
    x_XD = reference.rms_norm(x_XD, scale_D, eps)
    return _ACTIVATIONS[activation](F.linear(x_XD, gate_ID)) * F.linear(x_XD, up_ID)
