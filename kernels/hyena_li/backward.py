"""Hyena-LI backward in Triton: adjoints from segment to segment, then one walk up and one walk down every segment.

With x = dy . q the gradient of the inner filter's output, every mode has an adjoint b_t = x_t + lambda b_(t+1). What is
handed to a segment is the adjoint at 2H rows after its end or, where that is beyond the last row, the gradient of the
last modes by their residues, which no step decays.
"""

# B batch, L length, D width, E = 3D projected channels, S segments, N modes, F featurizer taps, H = F - 1
# C channels a program; a tuple of n tensors [C] is written n x [C]; the thirds of E are 0 = q, 1 = k, 2 = v

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hyena_li.down import down_kernel
from kernels.hyena_li.forward import decay_rates, fitted
from kernels.hyena_li.modes import advance, load_rows, load_thirds, narrow, nonzero, pick, store_modes, widen, zeros
from kernels.hyena_li.up import up_kernel
from kernels.rows import FUSED, everywhere, feature, load_filters, load_history, load_taps, place

# channels and warps a program, rows a group; a segment has `span` rows
ADJOINTS = {"C": 32, "num_warps": 1, "U": 8} | FUSED
UP = {"C": 32, "num_warps": 1, "U": 4} | FUSED
DOWN = {"C": 64, "num_warps": 1, "U": 4} | FUSED


@triton.jit(do_not_specialize=("L",))
def adjoints_kernel(
    z, past, taps, bias, rates, dy, after, L, stride_batch,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """What every segment but the first adds to the adjoints handed to the one before; it goes to that one's place."""
    channel_C, mask_C = place(D, C)
    segment, batch = tl.program_id(1).to(tl.int64) + 1, tl.program_id(2).to(tl.int64)
    z += batch * stride_batch
    low = segment * span + 2 * (F - 1)
    top = tl.minimum(low + span, L)
    count = tl.maximum(top - low, 0).to(tl.int32)
    whole = count - count % U
    window = load_history(z, past, top, stride, channel_C, mask_C, D, F, 0, 1)
    filters = load_filters(taps, bias, channel_C, mask_C, D, F, BIAS, 0, 1)
    rates = load_taps(rates, channel_C, mask_C, N)
    adjoints = zeros(C, N)
    p = z + (top - F) * stride + channel_C
    dy += (batch * L + top - 1) * D + channel_C
    for r in range(whole, count):
        full = widen(window, pick(load_thirds(p, count - r, stride, D, 0, 1, 1), 0, 1), 1)
        x_C = tl.load(dy).to(tl.float32) * feature(full[0][0], full[0][1:], filters[0], F)
        adjoints = advance(adjoints, x_C, rates, N, PRECISE)
        window = narrow(full, 1)
        p -= stride
        dy -= D
    rows, dys = load_thirds(p, whole, -stride, D, 0, 1, U), load_rows(dy, whole, -D, U)
    for r in range(0, whole, U):
        p -= U * stride
        dy -= U * D
        ahead, dy_ahead = load_thirds(p, whole - U - r, -stride, D, 0, 1, U), load_rows(dy, whole - U - r, -D, U)
        for u in tl.static_range(U):
            full = widen(window, pick(rows, u, 1), 1)
            x_C = dys[u].to(tl.float32) * feature(full[0][0], full[0][1:], filters[0], F)
            adjoints = advance(adjoints, x_C, rates, N, PRECISE)
            window = narrow(full, 1)
        rows, dys = ahead, dy_ahead
    place_of_previous = (batch * (tl.num_programs(1) + 1) + segment - 1) * N * D
    store_modes(after + place_of_previous + channel_C, adjoints, mask_C, D, N)


@triton.jit(do_not_specialize=("L", "S"))
def carry_back_kernel(
    log_poles, residues, dlast, after, L, S,
    D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """One mode of C channels from segment to segment, downwards: the adjoints handed to each of them."""
    channel_C, mask_C = place(D, C)
    n, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    log_pole_C = tl.load(log_poles + channel_C * N + n, mask=mask_C, other=0.0).to(tl.float64)
    residue_C = nonzero((tl.load(residues + channel_C * N + n, mask=mask_C, other=1.0),), 1)[0]
    segment_decay_C = tl.exp(log_pole_C * span).to(tl.float32)
    adjoint_C = tl.load(dlast + (batch * D + channel_C) * N + n, mask=mask_C, other=0.0) / residue_C
    p = after + ((batch * S + S - 1) * N + n) * D + channel_C
    tl.store(p, adjoint_C, mask=mask_C)
    for i in range(0, S - 1, U):
        p -= N * D
        segment_C = S - 1 - everywhere(i, channel_C)
        added = ()
        for u in tl.static_range(U):
            added = added + (tl.load(p - u * N * D, mask=mask_C & (segment_C > u), other=0.0),)
        for u in tl.static_range(U):
            # the last row has nothing after it: up to two segments are short of a step
            steps = tl.minimum(L - 1 - (S - 1 - i - u) * span - 2 * (F - 1), span)
            decay_C = segment_decay_C
            if steps < span:
                decay_C = tl.exp(log_pole_C * tl.maximum(steps, 0)).to(tl.float32)
            adjoint_C = decay_C * adjoint_C + added[u]
            tl.store(p - u * N * D, adjoint_C, mask=mask_C & (segment_C > u))
        p -= (U - 1) * N * D


def backward(
    dy_BLD: Tensor,
    dmodes_BDN: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    before_BSND: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of z, past, featurizer, bias (or something empty), log poles, residues, skip and modes."""
    B, L, E = z_BLE.shape
    D, N = log_poles_DN.shape
    F, S = featurizer_EK.shape[1], before_BSND.shape[1]
    G = F + (bias_E is not None)
    dz_BLE = torch.empty(B, L, E, dtype=z_BLE.dtype, device=z_BLE.device)
    dpast_BPE, dstate_BDN = torch.empty_like(past_BPE), torch.empty_like(dmodes_BDN)
    after_BSND = torch.empty_like(before_BSND)
    partial_XYD = torch.empty(B * S, 2 * N + 1 + 3 * G, D, dtype=torch.float32, device=z_BLE.device)
    precise = z_BLE.dtype is torch.float32
    rates_DN = decay_rates(log_poles_DN, precise)
    inputs = (z_BLE, past_BPE, featurizer_EK, featurizer_EK if bias_E is None else bias_E, rates_DN)
    shape = (L, z_BLE.stride(0), z_BLE.stride(1), D, F, N, bias_E is not None, precise)
    if S > 1:
        options = fitted(ADJOINTS, precise, N)
        adjoints_kernel[(triton.cdiv(D, options["C"]), S - 1, B)](
            *inputs, dy_BLD, after_BSND, *shape, span=rows, **options
        )
    carry_back_kernel[(triton.cdiv(D, 128), N, B)](
        log_poles_DN, residues_DN, dmodes_BDN, after_BSND, L, S, D, F, N, C=128, span=rows, U=8, num_warps=4, **FUSED
    )
    options = fitted(UP, precise, N)
    up_kernel[(triton.cdiv(D, options["C"]), S, B)](
        *inputs, residues_DN, skip_D, before_BSND, after_BSND, dy_BLD, dz_BLE, dpast_BPE, partial_XYD, *shape,
        span=rows, **options,
    )  # fmt: skip
    options = fitted(DOWN, precise, N)
    down_kernel[(triton.cdiv(D, options["C"]), S, B)](
        *inputs, residues_DN, skip_D, after_BSND, dy_BLD, dz_BLE, dpast_BPE, dstate_BDN, partial_XYD, *shape,
        span=rows, **options,
    )  # fmt: skip
    dresidues_ND, dlog_poles_ND, dskip_1D, dfilters_YD = partial_XYD.sum(dim=0).split([N, N, 1, 3 * G])
    dfilters_EG = dfilters_YD.view(3, G, D).transpose(1, 2).reshape(E, G)
    parameters = (dfilters_EG[:, :F], dfilters_EG[:, F:].flatten(), dlog_poles_ND.mT, dresidues_ND.mT, dskip_1D[0])
    # each in memory of its own, as outputs of an operator must be
    dtaps, dbias, *others = (x.clone(memory_format=torch.contiguous_format) for x in parameters)
    return dz_BLE, dpast_BPE, dtaps, dbias, *others, dstate_BDN
