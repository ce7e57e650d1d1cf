"""FP8 around a product: the Triton kernels where they can run, plain torch elsewhere."""

# C numbers that share a scale, M rows, P = M up to a multiple of 16, E outputs; X any leading dimensions

import torch
from torch import Tensor

from kernels.backend import Backend, lacks_fp8, use_triton
from kernels.fp8 import reference

MAX_WIDTH = 16_384


@torch.no_grad()
def quantise(x_XC: Tensor, scale: Tensor | None = None, *, backend: Backend = Backend.AUTO) -> tuple[Tensor, Tensor]:
    """Round x * scale to E4M3, ties to even; what lies beyond +-448 becomes +-448, NaN stays.

    Args:
        scale: one for all; None takes for each row of C numbers the one that takes its largest magnitude to 448.

    Returns:
        codes float8_e4m3fn [X, C], and the scale, float32: the one given or [X, 1]. Codes over it are the numbers.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    limit = f"rows have {x_XC.shape[-1]} numbers; the kernel takes at most {MAX_WIDTH}"
    if not use_triton(backend, "quantise", x_XC, limit if x_XC.shape[-1] > MAX_WIDTH else lacks_fp8(x_XC)):
        return reference.quantise(x_XC, scale)
    if scale is None:
        return _quantise(x_XC)
    return _quantise_by(x_XC, scale.float()), scale.float()


@torch.no_grad()
def quantise_both(x_MC: Tensor, scale: Tensor, *, backend: Backend = Backend.AUTO) -> tuple[Tensor, Tensor]:
    """Round as `quantise` does, once, into both orders: as x lies, and transposed.

    Hardware multiplies codes along the last dimension of both operands alone, so training needs a matrix both ways.

    Args:
        scale: one for all.

    Returns:
        codes float8_e4m3fn [M, C], and [C, P], contiguous: beyond M they are zeros.

    Raises:
        ValueError: as `quantise`.
    """
    limit = None
    if x_MC.dtype.itemsize != 2 or x_MC.shape[1] % reference.FP8_TILE:
        limit = f"numbers are {x_MC.dtype} in rows of {x_MC.shape[1]}; the kernel takes 16 bits, and multiples of 16"
    if not use_triton(backend, "quantise_both", x_MC, limit or lacks_fp8(x_MC)):
        return reference.quantise_both(x_MC, scale)
    return _quantise_both(x_MC, scale.float())


@torch.no_grad()
def rescale(
    sums_XE: Tensor,
    factor: Tensor,
    bias_E: Tensor | None,
    dtype: torch.dtype,
    *,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """sums * factor, rounded to a dtype, and then the bias, rounded again.

    Args:
        sums_XE: float32. factor: float32, one for all or [X, 1]. bias_E: in the dtype.

    Raises:
        ValueError: as `quantise`.
    """
    if not use_triton(backend, "rescale", sums_XE):
        return reference.rescale(sums_XE, factor, bias_E, dtype)
    factor_X1 = factor.expand(*sums_XE.shape[:-1], 1)
    return _rescale(sums_XE, factor_X1, bias_E, dtype)


@torch.library.custom_op("evo::quantise_rows", mutates_args=())
def _quantise(x_XC: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.fp8.step import quantise_rows

    with torch.cuda.device_of(x_XC):
        x_MC = x_XC.reshape(-1, x_XC.shape[-1]).contiguous()
        scale_M1 = x_MC.new_empty(x_MC.shape[0], 1, dtype=torch.float32)
        return quantise_rows(x_MC, scale_M1, own=True).view(x_XC.shape), scale_M1.view(*x_XC.shape[:-1], 1)


@_quantise.register_fake
def _(x_XC):  # type: ignore[no-untyped-def]
    codes_XC = x_XC.new_empty(x_XC.shape, dtype=torch.float8_e4m3fn)
    return codes_XC, x_XC.new_empty(*x_XC.shape[:-1], 1, dtype=torch.float32)


@torch.library.custom_op("evo::quantise_by", mutates_args=())
def _quantise_by(x_XC: Tensor, scale: Tensor) -> Tensor:
    from kernels.fp8.step import quantise_rows

    with torch.cuda.device_of(x_XC):
        return quantise_rows(x_XC.reshape(-1, x_XC.shape[-1]).contiguous(), scale, own=False).view(x_XC.shape)


@_quantise_by.register_fake
def _(x_XC, scale):  # type: ignore[no-untyped-def]
    return x_XC.new_empty(x_XC.shape, dtype=torch.float8_e4m3fn)


@torch.library.custom_op("evo::quantise_both", mutates_args=())
def _quantise_both(x_MC: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.fp8.transpose import quantise_tiles

    with torch.cuda.device_of(x_MC):
        return quantise_tiles(x_MC.contiguous(), scale)


@_quantise_both.register_fake
def _(x_MC, scale):  # type: ignore[no-untyped-def]
    M, C = x_MC.shape
    P = (M + reference.FP8_TILE - 1) // reference.FP8_TILE * reference.FP8_TILE
    return tuple(x_MC.new_empty(shape, dtype=torch.float8_e4m3fn) for shape in ((M, C), (C, P)))


@torch.library.custom_op("evo::rescale", mutates_args=())
def _rescale(sums_XE: Tensor, factor_X1: Tensor, bias_E: Tensor | None, dtype: torch.dtype) -> Tensor:
    from kernels.fp8.step import rescale_rows

    with torch.cuda.device_of(sums_XE):
        sums_ME = sums_XE.reshape(-1, sums_XE.shape[-1]).contiguous()
        bias_E = None if bias_E is None else bias_E.contiguous()
        return rescale_rows(sums_ME, factor_X1.reshape(-1).contiguous(), bias_E, dtype).view(sums_XE.shape)


@_rescale.register_fake
def _(sums_XE, factor_X1, bias_E, dtype):  # type: ignore[no-untyped-def]
    return sums_XE.new_empty(sums_XE.shape, dtype=dtype)
