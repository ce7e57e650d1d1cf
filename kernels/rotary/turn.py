"""Rotary embedding in Triton: a program a token, which turns all heads by the same angles."""

# B batch, L length, H heads, N of them at once, C channels a head, P = C/2 pairs, Q = P up to a power of two

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED

HEADS, WARPS = 8, 4


@triton.jit
def turn_kernel(
    x, cos, sin, y, L, stride_batch, stride_row, stride_head, stride_angles,
    H: tl.constexpr, C: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    row = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    pair_Q = tl.arange(0, Q)
    mask_Q = pair_Q < C // 2
    angle = batch * stride_angles + row * (C // 2) + pair_Q
    cos_Q = tl.load(cos + angle, mask=mask_Q, other=0.0)
    sin_Q = tl.load(sin + angle, mask=mask_Q, other=0.0)
    if BACK:
        sin_Q = -sin_Q
    x += batch * stride_batch + row * stride_row
    y += (batch * L + row) * H * C
    for first in tl.static_range(0, H, N):
        head_N = first + tl.arange(0, N)
        mask_NQ = (head_N[:, None] < H) & mask_Q[None, :]
        at_NQ = head_N[:, None] * stride_head + pair_Q[None, :]
        a_NQ = tl.load(x + at_NQ, mask=mask_NQ, other=0.0).to(tl.float32)
        b_NQ = tl.load(x + at_NQ + C // 2, mask=mask_NQ, other=0.0).to(tl.float32)
        to_NQ = head_N[:, None] * C + pair_Q[None, :]
        first_NQ = a_NQ * cos_Q[None, :] - b_NQ * sin_Q[None, :]
        second_NQ = a_NQ * sin_Q[None, :] + b_NQ * cos_Q[None, :]
        tl.store(y + to_NQ, first_NQ.to(y.dtype.element_ty), mask=mask_NQ)
        tl.store(y + to_NQ + C // 2, second_NQ.to(y.dtype.element_ty), mask=mask_NQ)


def turn(x_BLHC: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """Run the kernel on heads whose channels lie side by side, and contiguous angles [B or 1, L, 1, C/2]."""
    B, L, H, C = x_BLHC.shape
    y_BLHC = torch.empty(B, L, H, C, dtype=x_BLHC.dtype, device=x_BLHC.device)
    stride_angles = L * (C // 2) if cos.shape[0] > 1 else 0
    turn_kernel[(L, B)](
        x_BLHC, cos, sin, y_BLHC, L, x_BLHC.stride(0), x_BLHC.stride(1), x_BLHC.stride(2), stride_angles,
        H, C, min(HEADS, triton.next_power_of_2(H)), triton.next_power_of_2(C // 2), back,
        num_warps=WARPS, **FUSED,
    )  # fmt: skip
    return y_BLHC
