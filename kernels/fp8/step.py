"""FP8 around a product in Triton: a row is read once and rounded with its scale; its sums are scaled back in a pass."""

# M rows of C numbers, P = C up to a power of two; E outputs, N of them at once

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS, WARPS = 4096, 8
# rounding is plain torch's: a product and a sum in one operation would round once
EXACT = {"enable_fp_fusion": False}
_HIGHEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def quantise_kernel(x, codes, scales, C: tl.constexpr, P: tl.constexpr, OWN: tl.constexpr):
    """One row, with its own scale or the one of all."""
    row = tl.program_id(0).to(tl.int64)
    number_P = tl.arange(0, P)
    mask_P = number_P < C
    x_P = tl.load(x + row * C + number_P, mask=mask_P, other=0.0).to(tl.float32)
    if OWN:
        largest = tl.max(tl.abs(x_P), axis=0)
        usual = (largest > 0) & (largest < float("inf"))
        scale = tl.where(usual, tl.minimum(tl.div_rn(448.0, tl.where(usual, largest, 1.0)), _HIGHEST), 1.0)
        tl.store(scales + row, scale)
    else:
        scale = tl.load(scales)
    x_P = tl.clamp(x_P * scale, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(codes + row * C + number_P, x_P.to(codes.dtype.element_ty), mask=mask_P)


@triton.jit
def rescale_kernel(sums, factors, bias, y, E, BIAS: tl.constexpr, N: tl.constexpr):
    """N outputs of one row."""
    row = tl.program_id(0).to(tl.int64)
    output_N = tl.program_id(1) * N + tl.arange(0, N)
    mask_N = output_N < E
    sums_N = tl.load(sums + row * E + output_N, mask=mask_N, other=0.0)
    y_N = (sums_N * tl.load(factors + row)).to(y.dtype.element_ty)
    if BIAS:
        bias_N = tl.load(bias + output_N, mask=mask_N, other=0.0).to(tl.float32)
        y_N = (y_N.to(tl.float32) + bias_N).to(y.dtype.element_ty)
    tl.store(y + row * E + output_N, y_N, mask=mask_N)


def quantise_rows(x_MC: Tensor, scales: Tensor, *, own: bool) -> Tensor:
    """Run the kernel on contiguous rows; their own scales go into `scales` [M, 1], that of all comes from there."""
    M, C = x_MC.shape
    codes_MC = torch.empty_like(x_MC, dtype=torch.float8_e4m3fn)
    P = triton.next_power_of_2(C)
    quantise_kernel[(M,)](x_MC, codes_MC, scales, C, P, own, num_warps=min(WARPS, max(1, P // 512)), **EXACT)
    return codes_MC


def rescale_rows(sums_ME: Tensor, factor_M: Tensor, bias_E: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Run the kernel on contiguous tensors."""
    M, E = sums_ME.shape
    y_ME = torch.empty_like(sums_ME, dtype=dtype)
    N = min(OUTPUTS, triton.next_power_of_2(E))
    rescale_kernel[(M, triton.cdiv(E, N))](
        sums_ME, factor_M, y_ME if bias_E is None else bias_E, y_ME, E, bias_E is not None, N,
        num_warps=min(WARPS, max(1, N // 512)), **EXACT,
    )  # fmt: skip
    return y_ME
