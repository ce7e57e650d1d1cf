"""Rotary embedding in plain torch, differentiable."""

# C channels a head; X any leading dimensions

import torch
from torch import Tensor


def rotate(x_XC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (j, j + C/2) of every head by the position's angles, in float32 or better, rounded once."""
    a, b = x_XC.to(torch.promote_types(x_XC.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x_XC.dtype)
