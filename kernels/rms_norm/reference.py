"""RMSNorm in plain torch, differentiable."""

# D width; any leading dimensions

import torch
from torch import Tensor


def rms_norm(x_XD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    """y = scale * x / (rms(x) + eps), in float32 or better, rounded once. The eps is on the root, not under it."""
    wide_XD = x_XD.to(torch.promote_types(x_XD.dtype, torch.float32))
    rms_X1 = torch.linalg.vector_norm(wide_XD, dim=-1, keepdim=True) * wide_XD.shape[-1] ** -0.5
    return (wide_XD * (1.0 / (rms_X1 + eps)) * scale_D.to(wide_XD.dtype)).to(x_XD.dtype)
