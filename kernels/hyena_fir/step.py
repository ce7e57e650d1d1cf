"""One token of Hyena-SE or Hyena-MR in Triton, for decoding: one launch, which also moves the state on in place."""

# B batch, D width, E = 3D projected channels, G filter groups, F featurizer taps, K inner taps, P past inputs
# C channels a program; a tuple of n tensors [C] is written n x [C]

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED, step_feature

# one warp: a second would read past inputs that the first may have moved already
CHANNELS, WARPS = 32, 1
ROWS = 32


@triton.jit
def step_inner(
    w_C, inner, taps, mask_C, D: tl.constexpr, K: tl.constexpr, C: tl.constexpr, U: tl.constexpr
):  # fmt: skip
    """The inner filter's output from w and its K-1 past inputs, which move up by one; U rows are read at a time."""
    out_C = w_C * tl.load(taps, mask=mask_C, other=0.0).to(tl.float32)
    for first in range(0, K - 1, U):
        rows = ()
        weights = ()
        for u in tl.static_range(U):
            there_C = mask_C & (tl.full((C,), first + u, tl.int32) < K - 1)
            rows = rows + (tl.load(inner + (first + u) * D, mask=there_C, other=0.0),)
            weights = weights + (tl.load(taps + (K - 1 - first - u), mask=there_C, other=0.0),)
        for u in tl.static_range(U):
            row_C = tl.full((C,), first + u, tl.int32)
            out_C += rows[u] * weights[u].to(tl.float32)
            tl.store(inner + (first + u - 1) * D, rows[u], mask=mask_C & (row_C > 0) & (row_C < K - 1))
    if K > 1:
        tl.store(inner + (K - 2) * D, w_C, mask=mask_C)
    return out_C


@triton.jit
def step_kernel(
    z, past, inner, featurizer, bias, taps, skip, y, stride_batch,
    D: tl.constexpr, G: tl.constexpr, F: tl.constexpr, K: tl.constexpr,
    BIAS: tl.constexpr, SKIP: tl.constexpr, C: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """One token of every sequence, C channels a program."""
    channel_C = tl.program_id(0) * C + tl.arange(0, C)
    mask_C = channel_C < D
    batch = tl.program_id(1).to(tl.int64)
    z += batch * stride_batch
    past += batch * (F - 1) * 3 * D
    inner += batch * (K - 1) * D
    q_C = step_feature(z, past, featurizer, bias, channel_C, mask_C, 3 * D, F, BIAS)
    k_C = step_feature(z, past, featurizer, bias, channel_C + D, mask_C, 3 * D, F, BIAS)
    v_C = step_feature(z, past, featurizer, bias, channel_C + 2 * D, mask_C, 3 * D, F, BIAS)
    w_C = k_C * v_C
    c_C = step_inner(w_C, inner + channel_C, taps + channel_C // (D // G) * K, mask_C, D, K, C, U)
    if SKIP:
        c_C += tl.load(skip + channel_C, mask=mask_C, other=0.0).to(tl.float32) * w_C
    tl.store(y + batch * D + channel_C, (q_C * c_C).to(y.dtype.element_ty), mask=mask_C)


def step(
    z_BE: Tensor,
    featurizer_EF: Tensor,
    bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    past_BPE: Tensor,
    inner_BPD: Tensor,
) -> Tensor:
    """Run one token on contiguous parameters and states of any floating dtypes and a z whose last stride is 1."""
    B, D, (G, K) = z_BE.shape[0], z_BE.shape[1] // 3, taps_GK.shape
    y_BD = torch.empty(B, D, dtype=z_BE.dtype, device=z_BE.device)
    step_kernel[(triton.cdiv(D, CHANNELS), B)](
        z_BE, past_BPE, inner_BPD, featurizer_EF, bias_E, taps_GK, skip_D, y_BD, z_BE.stride(0),
        D, G, featurizer_EF.shape[1], K, bias_E is not None, skip_D is not None,
        C=CHANNELS, U=min(ROWS, triton.next_power_of_2(K)), num_warps=WARPS, **FUSED,
    )  # fmt: skip
    return y_BD
