"""The merge in Triton: a program takes some queries of one head, reads every part once and writes the whole."""

# B batch, L queries, H heads, C channels a head, R queries of a program, P = C up to a power of two

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED

ROWS, WARPS = 64, 4


@triton.jit
def merge_kernel(
    parts, logs, y, L, stride_batch, stride_head, stride_row,
    H: tl.constexpr, C: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """R queries of one head; parts and logs are tuples of pointers."""
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    seen_R = row_R < L
    channel_P = tl.arange(0, P)
    mask_RP = seen_R[:, None] & (channel_P < C)[None, :]
    log_at_R = (batch * H + head) * L + row_R
    most_R = tl.load(logs[0] + log_at_R, mask=seen_R, other=0.0)
    for part in tl.static_range(1, len(logs)):
        most_R = tl.maximum(most_R, tl.load(logs[part] + log_at_R, mask=seen_R, other=0.0))
    at_RP = batch * stride_batch + head * stride_head + row_R[:, None] * stride_row + channel_P[None, :]
    sum_R = tl.zeros([R], dtype=tl.float32)
    y_RP = tl.zeros([R, P], dtype=tl.float32)
    for part in tl.static_range(len(parts)):
        share_R = tl.exp(tl.load(logs[part] + log_at_R, mask=seen_R, other=0.0) - most_R)
        sum_R += share_R
        y_RP += share_R[:, None] * tl.load(parts[part] + at_RP, mask=mask_RP, other=0.0).to(tl.float32)
    to_RP = ((batch * L + row_R[:, None]) * H + head) * C + channel_P[None, :]
    tl.store(y + to_RP, (y_RP / sum_R[:, None]).to(y.dtype.element_ty), mask=mask_RP)


def merge(parts_BHLC: Sequence[Tensor], logs_BHL: Sequence[Tensor]) -> Tensor:
    """Run the kernel on parts of the same strides, their channels side by side, and contiguous float32 logarithms."""
    first = parts_BHLC[0]
    B, H, L, C = first.shape
    y_BLHC = torch.empty(B, L, H, C, dtype=first.dtype, device=first.device)
    merge_kernel[(triton.cdiv(L, ROWS), H, B)](
        tuple(parts_BHLC), tuple(logs_BHL), y_BLHC, L, first.stride(0), first.stride(1), first.stride(2),
        H, C, triton.next_power_of_2(C), ROWS, num_warps=WARPS, **FUSED,
    )  # fmt: skip
    return y_BLHC
