"""Rotary embedding: the Triton kernel where it can run, plain torch elsewhere."""

# B batch, L length, H heads, C channels a head

from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend, use_triton
from kernels.rotary import reference


def rotate(x_BLHC: Tensor, cos_BL1P: Tensor, sin_BL1P: Tensor, *, backend: Backend = Backend.AUTO) -> Tensor:
    """Rotate the pairs (j, j + C/2) of every head by the position's angles, in float32 or better, rounded once.

    Args:
        x_BLHC: heads of a projection, at any strides of B, L and H; C even.
        cos_BL1P, sin_BL1P: [B or 1, L, 1, C/2], float32, not differentiated.

    Returns:
        y_BLHC in x's dtype.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    limit = None if x_BLHC.stride(3) == 1 else "the channels of a head do not lie side by side"
    if not use_triton(backend, "rotate", x_BLHC, limit):
        return reference.rotate(x_BLHC, cos_BL1P, sin_BL1P)
    y_BLHC: Tensor = _rotate(x_BLHC, cos_BL1P.contiguous(), sin_BL1P.contiguous(), False)
    return y_BLHC


@torch.library.custom_op("evo::rotate", mutates_args=())
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    from kernels.rotary.turn import turn

    with torch.cuda.device_of(x):
        return turn(x if x.stride(3) == 1 else x.contiguous(), cos, sin, back=back)


@_rotate.register_fake
def _(x, cos, sin, back):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    cos, sin = ctx.saved_tensors
    return _rotate(dy, cos, sin, not ctx.back), None, None, None


_rotate.register_autograd(_differentiate, setup_context=_save)
