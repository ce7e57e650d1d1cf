"""One token of Hyena-LI in Triton, for decoding: one launch, which also moves the state on in place."""

# B batch, D width, E = 3D projected channels, N modes, M = N up to a power of two, F featurizer taps, P = F - 1
# C channels a program

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED, step_feature

# one warp: a second would read past inputs that the first may have moved already
CHANNELS, WARPS = 16, 1


@triton.jit
def step_kernel(
    z, past, taps, bias, log_poles, residues, skip, modes, y, stride_batch,
    D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """One token of every sequence, C channels a program."""
    channel_C = tl.program_id(0) * C + tl.arange(0, C)
    mask_C = channel_C < D
    batch = tl.program_id(1).to(tl.int64)
    z += batch * stride_batch
    past += batch * (F - 1) * 3 * D
    q_C = step_feature(z, past, taps, bias, channel_C, mask_C, 3 * D, F, BIAS)
    k_C = step_feature(z, past, taps, bias, channel_C + D, mask_C, 3 * D, F, BIAS)
    v_C = step_feature(z, past, taps, bias, channel_C + 2 * D, mask_C, 3 * D, F, BIAS)
    w_C = k_C * v_C
    mode_M = tl.arange(0, M)
    place_CM = channel_C[:, None] * N + mode_M[None, :]
    mask_CM = mask_C[:, None] & (mode_M < N)[None, :]
    # thousands of steps: what float32 loses of a pole close to 1 would add up
    poles_CM = tl.exp(tl.load(log_poles + place_CM, mask=mask_CM, other=0.0).to(tl.float64))
    modes_CM = tl.load(modes + batch * D * N + place_CM, mask=mask_CM, other=0.0)
    modes_CM = (poles_CM * modes_CM + w_C[:, None]).to(tl.float32)
    tl.store(modes + batch * D * N + place_CM, modes_CM, mask=mask_CM)
    residues_CM = tl.load(residues + place_CM, mask=mask_CM, other=0.0).to(tl.float32)
    c_C = tl.sum(residues_CM * modes_CM, axis=1)
    c_C += tl.load(skip + channel_C, mask=mask_C, other=0.0).to(tl.float32) * w_C
    tl.store(y + batch * D + channel_C, (q_C * c_C).to(y.dtype.element_ty), mask=mask_C)


def step(
    z_BE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    past_BPE: Tensor,
    modes_BDN: Tensor,
) -> Tensor:
    """Run one token on contiguous parameters and states of any floating dtypes and a z whose last stride is 1."""
    B, (D, N) = z_BE.shape[0], log_poles_DN.shape
    y_BD = torch.empty(B, D, dtype=z_BE.dtype, device=z_BE.device)
    step_kernel[(triton.cdiv(D, CHANNELS), B)](
        z_BE, past_BPE, featurizer_EK, featurizer_EK if bias_E is None else bias_E, log_poles_DN, residues_DN, skip_D,
        modes_BDN, y_BD, z_BE.stride(0), D, featurizer_EK.shape[1], N, bias_E is not None,
        C=CHANNELS, M=triton.next_power_of_2(N), num_warps=WARPS, **FUSED,
    )  # fmt: skip
    return y_BD
