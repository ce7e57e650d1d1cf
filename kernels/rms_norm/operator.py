"""RMSNorm for inference: the Triton kernel where it can run, plain torch elsewhere."""

# M rows, D width; X any leading dimensions

import torch
from torch import Tensor

from kernels.backend import Backend, use_triton
from kernels.rms_norm import reference

MAX_WIDTH = 16_384


def rms_norm(x_XD: Tensor, scale_D: Tensor, eps: float, *, backend: Backend = Backend.AUTO) -> Tensor:
    """y = scale * x / (rms(x) + eps), in float32 or better, rounded once. The eps is on the root, not under it.

    The kernel has no gradient: while gradients are kept, plain torch runs.

    Args:
        x_XD: any leading dimensions.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    if not _in_triton(x_XD, backend):
        return reference.rms_norm(x_XD, scale_D, eps)
    return _norm(x_XD, scale_D, eps)


def rms_norm_and_sum(
    x_XD: Tensor, scale_D: Tensor, bias_D: Tensor, eps: float, *, backend: Backend = Backend.AUTO
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of x, and x + bias, to which a layer without its bias can add what it makes of the norm."""
    if not _in_triton(x_XD, backend):
        return reference.rms_norm(x_XD, scale_D, eps), x_XD + bias_D.to(x_XD.dtype)
    return _norm_and_sum(x_XD, scale_D, bias_D, eps)


def _in_triton(x_XD: Tensor, backend: Backend) -> bool:
    limit = None
    if torch.is_grad_enabled():
        if backend is Backend.AUTO:  # this is training, where no kernel is missed: nothing is said
            return False
        limit = "gradients are kept"
    elif x_XD.shape[-1] > MAX_WIDTH:
        limit = f"a row has {x_XD.shape[-1]} channels; the kernel takes at most {MAX_WIDTH}"
    return use_triton(backend, "rms_norm", x_XD, limit)


@torch.library.custom_op("evo::rms_norm", mutates_args=())
def _norm(x_XD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    from kernels.rms_norm.step import norm

    with torch.cuda.device_of(x_XD):
        return norm(x_XD.reshape(-1, x_XD.shape[-1]).contiguous(), scale_D.contiguous(), eps).view(x_XD.shape)


@_norm.register_fake
def _(x_XD, scale_D, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_XD, memory_format=torch.contiguous_format)


@torch.library.custom_op("evo::rms_norm_and_sum", mutates_args=())
def _norm_and_sum(x_XD: Tensor, scale_D: Tensor, bias_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from kernels.rms_norm.step import norm

    with torch.cuda.device_of(x_XD):
        x_MD = x_XD.reshape(-1, x_XD.shape[-1]).contiguous()
        sum_MD = torch.empty_like(x_MD)
        y_MD = norm(x_MD, scale_D.contiguous(), eps, bias_D.contiguous(), sum_MD)
        return y_MD.view(x_XD.shape), sum_MD.view(x_XD.shape)


@_norm_and_sum.register_fake
def _(x_XD, scale_D, bias_D, eps):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x_XD, memory_format=torch.contiguous_format) for _ in range(2))
