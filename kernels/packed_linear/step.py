"""A packed weight times a few rows in Triton: every code is read once, as a byte, and multiplied with all rows."""

# M rows, D inputs, E outputs; R outputs a program, N inputs at once

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED

OUTPUTS, INPUTS, WARPS = 4, 1024, 4
_SUMS = 2048  # of an output, of all rows: with more, registers run out


@triton.jit
def packed_kernel(
    x, codes, units, bias, y, D, E,
    M: tl.constexpr, R: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """R outputs of all rows."""
    output_R = tl.program_id(0) * R + tl.arange(0, R)
    mask_R = output_R < E
    at_R1 = output_R.to(tl.int64)[:, None] * D
    sums = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros((R, N), tl.float32),)
    for start in range(0, D, N):
        input_N = start + tl.arange(0, N)
        mask_N = input_N < D
        weight_RN = tl.load(codes + at_R1 + input_N[None, :], mask=mask_R[:, None] & mask_N[None, :], other=0.0)
        weight_RN = weight_RN.to(tl.float32)
        new_sums = ()
        for m in tl.static_range(M):
            x_N = tl.load(x + m * D + input_N, mask=mask_N, other=0.0).to(tl.float32)
            new_sums = new_sums + (sums[m] + weight_RN * x_N[None, :],)
        sums = new_sums
    unit_R = tl.load(units + output_R, mask=mask_R, other=0.0)
    for m in tl.static_range(M):
        y_R = tl.sum(sums[m], axis=1) * unit_R
        if BIAS:
            y_R += tl.load(bias + output_R, mask=mask_R, other=0.0).to(tl.float32)
        tl.store(y + m * E + output_R, y_R.to(y.dtype.element_ty), mask=mask_R)


def multiply(x_MD: Tensor, codes_ED: Tensor, units_E: Tensor, bias_E: Tensor | None) -> Tensor:
    """Run the kernel on contiguous tensors."""
    (M, D), E = x_MD.shape, codes_ED.shape[0]
    y_ME = x_MD.new_empty(M, E)
    at_once = min(INPUTS, _SUMS // triton.next_power_of_2(M), triton.next_power_of_2(D))
    packed_kernel[(triton.cdiv(E, OUTPUTS),)](
        x_MD, codes_ED.view(torch.float8_e4m3fn), units_E, units_E if bias_E is None else bias_E, y_ME, D, E,
        M, OUTPUTS, at_once, bias_E is not None, num_warps=WARPS, **FUSED,
    )  # fmt: skip
    return y_ME
