"""A packed weight times a few rows in Triton: every code is read once, as a byte, and multiplied with all rows."""

# M rows, D inputs, E outputs; R outputs a program, N inputs at once, U times as many on their way

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED

# the same for any number of rows, so that none changes the order in which another's sums are taken
OUTPUTS, INPUTS, AHEAD, WARPS = 4, 256, 4, 4


@triton.jit
def packed_kernel(
    x, codes, units, bias, y, D, E,
    M: tl.constexpr, R: tl.constexpr, N: tl.constexpr, U: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """R outputs of all rows."""
    output_R = tl.program_id(0) * R + tl.arange(0, R)
    mask_R = output_R < E
    at_R1 = output_R.to(tl.int64)[:, None] * D
    same_R1 = tl.zeros((R, 1), tl.int32)
    sums = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros((R, N), tl.float32),)
    for start in range(0, D, N * U):
        codes_read = ()
        for u in tl.static_range(U):
            input_N = start + u * N + tl.arange(0, N)
            mask_RN = mask_R[:, None] & (input_N < D)[None, :]
            codes_read = codes_read + (tl.load(codes + at_R1 + input_N[None, :], mask=mask_RN, other=0.0),)
        for u in tl.static_range(U):
            # every output reads the inputs anew, from a cache: they lie as the codes do, and no thread needs another
            input_RN = same_R1 + (start + u * N + tl.arange(0, N))[None, :]
            weight_RN = codes_read[u].to(tl.float32)
            new_sums = ()
            for m in tl.static_range(M):
                x_RN = tl.load(x + m * D + input_RN, mask=input_RN < D, other=0.0).to(tl.float32)
                new_sums = new_sums + (sums[m] + weight_RN * x_RN,)
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
    packed_kernel[(triton.cdiv(E, OUTPUTS),)](
        x_MD, codes_ED.view(torch.float8_e4m3fn), units_E, units_E if bias_E is None else bias_E, y_ME, D, E,
        M, OUTPUTS, INPUTS, AHEAD, bias_E is not None, num_warps=WARPS, **FUSED,
    )  # fmt: skip
    return y_ME
