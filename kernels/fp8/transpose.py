"""Rounding to E4M3 in Triton into both orders at once: a matrix is read once, and written as it lies and transposed.

For numbers of 16 bits, which are transposed before they are rounded. From numbers of 32 bits Triton 3.6 transposes the
codes, byte by byte, and on a GPU some of these came out as zeros.
"""

# M rows of C numbers, in tiles of R by N; P = M up to a multiple of 16

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8.reference import FP8_TILE

ROWS, COLUMNS, WARPS = 128, 64, 4


@triton.jit
def quantise_both_kernel(x, scale, codes, turned, M, C, P, R: tl.constexpr, N: tl.constexpr):
    """One tile; of rows that are not there, zeros are written where the transpose has room for them."""
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column_N = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    inside_RN = (row_R < M)[:, None] & (column_N < C)[None, :]
    x_RN = tl.load(x + row_R[:, None] * C + column_N[None, :], mask=inside_RN, other=0.0).to(tl.float32)
    x_RN = tl.clamp(x_RN * tl.load(scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    codes_RN = x_RN.to(codes.dtype.element_ty)
    tl.store(codes + row_R[:, None] * C + column_N[None, :], codes_RN, mask=inside_RN)
    inside_NR = (column_N < C)[:, None] & (row_R < P)[None, :]
    tl.store(turned + column_N[:, None] * P + row_R[None, :], tl.trans(codes_RN), mask=inside_NR)


def quantise_tiles(x_MC: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel on contiguous rows."""
    M, C = x_MC.shape
    P = triton.cdiv(M, FP8_TILE) * FP8_TILE
    codes_MC = torch.empty_like(x_MC, dtype=torch.float8_e4m3fn)
    codes_CP = x_MC.new_empty(C, P, dtype=torch.float8_e4m3fn)
    grid = triton.cdiv(M, ROWS), triton.cdiv(C, COLUMNS)
    quantise_both_kernel[grid](x_MC, scale, codes_MC, codes_CP, M, C, P, ROWS, COLUMNS, num_warps=WARPS)
    return codes_MC, codes_CP
