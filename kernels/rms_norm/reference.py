"""RMSNorm in plain torch, differentiable."""

# D width, X any leading dimensions, M rows

from typing import Any

import torch
from torch import Tensor


def rms_norm(x_XD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    """y = scale * x / (rms(x) + eps), in float32 or better, rounded once. The eps is on the root, not under it."""
    if _on_host(x_XD, scale_D):
        y_XD: Tensor = _Norm.apply(x_XD, scale_D, eps)
        return y_XD
    wide_XD = x_XD.to(torch.promote_types(x_XD.dtype, torch.float32))
    return (wide_XD * (1.0 / (_rms(wide_XD) + eps)) * scale_D.to(wide_XD.dtype)).to(x_XD.dtype)


def _rms(x_XD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_XD, dim=-1, keepdim=True) * x_XD.shape[-1] ** -0.5


def _on_host(x_XD: Tensor, scale_D: Tensor) -> bool:
    """Whether gradients are kept on a CPU, in numbers that need no rounding."""
    here = x_XD.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return here and x_XD.dtype is scale_D.dtype and x_XD.dtype.itemsize >= 4


class _Norm(torch.autograd.Function):
    """With r = 1 / (rms + eps):  dx = r scale g - x (r^2 / (rms D)) sum(scale g x),  dscale = sum over rows of r g x.

    A CPU's time is that of its passes over memory; autograd's own backward makes more than twice as many.
    """

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
        rms_X1 = _rms(x_XD)
        r_X1 = (rms_X1 + eps).reciprocal_()
        ctx.save_for_backward(x_XD, scale_D, rms_X1, r_X1)
        return (x_XD * r_X1).mul_(scale_D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_XD, scale_D, rms_X1, r_X1 = ctx.saved_tensors
        (grad_XD,) = grads
        products_MD = (grad_XD * x_XD).reshape(-1, D := x_XD.shape[-1])
        sums_X1 = products_MD.mv(scale_D).view_as(r_X1)
        least = torch.finfo(rms_X1.dtype).tiny  # a row of zeros has no direction, and its sum is 0
        curve_X1 = sums_X1 * r_X1.square() / (rms_X1.clamp(min=least) * -D)
        grad_x_XD = (grad_XD * scale_D).mul_(r_X1).addcmul_(x_XD, curve_X1)
        return grad_x_XD, products_MD.mT.mv(r_X1.reshape(-1)), None
