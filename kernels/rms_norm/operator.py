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
    limit = None
    if torch.is_grad_enabled():
        if backend is Backend.AUTO:  # this is training, where no kernel is missed: nothing is said
            return reference.rms_norm(x_XD, scale_D, eps)
        limit = "gradients are kept"
    elif x_XD.shape[-1] > MAX_WIDTH:
        limit = f"a row has {x_XD.shape[-1]} channels; the kernel takes at most {MAX_WIDTH}"
    if not use_triton(backend, "rms_norm", x_XD, limit):
        return reference.rms_norm(x_XD, scale_D, eps)
    return _norm(x_XD, scale_D, eps)


@torch.library.custom_op("evo::rms_norm", mutates_args=())
def _norm(x_XD: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    from kernels.rms_norm.step import norm

    with torch.cuda.device_of(x_XD):
        x_MD = x_XD.reshape(-1, x_XD.shape[-1]).contiguous()
        return norm(x_MD, scale_D.contiguous(), eps).view(x_XD.shape)


@_norm.register_fake
def _(x_XD, scale_D, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_XD, memory_format=torch.contiguous_format)
