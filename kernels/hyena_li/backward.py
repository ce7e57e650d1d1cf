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
from kernels.hyena_li.forward import fitted, launch
from kernels.hyena_li.modes import advance, load_rows, load_thirds, narrow, nonzero, pick, store_modes, widen, zeros
from kernels.hyena_li.up import up_kernel
from kernels.rows import FUSED, everywhere, feature, load_before, load_filters, load_history, load_taps, place

# channels and warps a program, rows a group; a segment has `span` rows
ADJOINTS = {"C": 32, "num_warps": 1, "U": 8} | FUSED
UP = {"C": 32, "num_warps": 1, "U": 4} | FUSED
DOWN = {"C": 64, "num_warps": 1, "U": 4} | FUSED


@triton.jit
def adjoint(dy_C, oldest, window, adjoints, filters, rates, F, N, PRECISE):
    """One row down: the window and the adjoints of the row before."""
    full = widen(window, oldest, 1)
    x_C = dy_C.to(tl.float32) * feature(full[0][0], full[0][1:], filters[0], F)
    return narrow(full, 1), advance(adjoints, x_C, rates, N, PRECISE)


@triton.jit(do_not_specialize=("L", "S"))
def adjoints_kernel(
    z, past, taps, bias, rates, dy, gifts, first, L, S, stride_batch,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """What every segment adds to the adjoints handed to the one before; it goes to that one's place.

    The last programs are the first segment's, if it is asked for: it adds to the adjoint at row 0, in `first`.
    """
    channel_C, mask_C = place(D, C)
    segment, batch = S - 1 - tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    z += batch * stride_batch
    past += batch * (F - 1) * 3 * D
    top = tl.minimum((segment + 1) * span + 2 * (F - 1), L)
    # the rows before row F - 1 look back into the state: they are walked at last
    low = tl.where(segment > 0, segment * span + 2 * (F - 1), F - 1)
    count = tl.maximum(top - low, 0).to(tl.int32)
    whole = count - count % U
    window = load_history(z, past, top, stride, channel_C, mask_C, D, F, 0, 1)
    filters = load_filters(taps, bias, channel_C, mask_C, D, F, BIAS, 0, 1)
    rates = load_taps(rates, channel_C, mask_C, N)
    adjoints = zeros(C, N)
    p = z + (top - F) * stride + channel_C
    dy += (batch * L + top - 1) * D + channel_C
    for r in range(whole, count):
        left = pick(load_thirds(p, count - r, stride, D, 0, 1, 1), 0, 1)
        window, adjoints = adjoint(tl.load(dy), left, window, adjoints, filters, rates, F, N, PRECISE)
        p -= stride
        dy -= D
    rows, dys = load_thirds(p, whole, -stride, D, 0, 1, U), load_rows(dy, whole, -D, U)
    for r in range(0, whole, U):
        p -= U * stride
        dy -= U * D
        ahead, dy_ahead = load_thirds(p, whole - U - r, -stride, D, 0, 1, U), load_rows(dy, whole - U - r, -D, U)
        for u in tl.static_range(U):
            window, adjoints = adjoint(dys[u], pick(rows, u, 1), window, adjoints, filters, rates, F, N, PRECISE)
        rows, dys = ahead, dy_ahead
    beginning = tl.where(segment > 0, 0, tl.minimum(low, L))
    for r in range(0, beginning.to(tl.int32)):
        row_C = everywhere(beginning - r - F, channel_C)
        oldest = (load_before(z, past, row_C, stride, channel_C, mask_C, 3 * D, F),)
        window, adjoints = adjoint(tl.load(dy), oldest, window, adjoints, filters, rates, F, N, PRECISE)
        dy -= D
    if segment > 0:
        store_modes(gifts + (batch * S + segment - 1) * N * D + channel_C, adjoints, mask_C, D, N)
    else:
        store_modes(first + batch * N * D + channel_C, adjoints, mask_C, D, N)


@triton.jit(do_not_specialize=("L", "S"))
def carry_back_kernel(
    log_poles, residues, dlast, added, after, L, S,
    D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """One mode of C channels from segment to segment, downwards: the adjoints handed to each of them."""
    channel_C, mask_C = place(D, C)
    n, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    log_pole_C = tl.load(log_poles + channel_C * N + n, mask=mask_C, other=0.0).to(tl.float64)
    residue_C = nonzero((tl.load(residues + channel_C * N + n, mask=mask_C, other=1.0),), 1)[0]
    segment_decay_C = tl.exp(log_pole_C * span).to(tl.float32)
    adjoint_C = tl.load(dlast + (batch * D + channel_C) * N + n, mask=mask_C, other=0.0) / residue_C
    p = ((batch * S + S - 1) * N + n) * D + channel_C
    tl.store(after + p, adjoint_C, mask=mask_C)
    for i in range(0, S - 1, U):
        p -= N * D
        segment_C = S - 1 - everywhere(i, channel_C)
        gifts = ()
        for u in tl.static_range(U):
            gifts = gifts + (tl.load(added + p - u * N * D, mask=mask_C & (segment_C > u), other=0.0),)
        for u in tl.static_range(U):
            # the last row has nothing after it: up to two segments are short of a step
            steps = tl.minimum(L - 1 - (S - 1 - i - u) * span - 2 * (F - 1), span)
            decay_C = segment_decay_C
            if steps < span:
                decay_C = tl.exp(log_pole_C * tl.maximum(steps, 0)).to(tl.float32)
            adjoint_C = decay_C * adjoint_C + gifts[u]
            tl.store(after + p - u * N * D, adjoint_C, mask=mask_C & (segment_C > u))
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
    filters = (featurizer_EK, bias_E, log_poles_DN)
    F = featurizer_EK.shape[1]
    added_BSND = adjoints(dy_BLD, z_BLE, past_BPE, *filters, rows)
    after_BSND = carry_back(log_poles_DN, residues_DN, dmodes_BDN, added_BSND, added_BSND, z_BLE.shape[1], F, rows)
    return gradients(dy_BLD, z_BLE, past_BPE, *filters, residues_DN, skip_D, before_BSND, after_BSND, rows)


def summary(
    dy_BLD: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Run what needs no gradient of the modes after the last row.

    Returns:
        What `adjoints` does, and the gradient of the modes before the first row, had that been zero, [B, D, N].
    """
    B, L, _ = z_BLE.shape
    D, N = log_poles_DN.shape
    F = featurizer_EK.shape[1]
    first_BND = log_poles_DN.new_empty(B, N, D)
    added_BSND = adjoints(dy_BLD, z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, rows, first_BND)
    nothing_BDN, after_BSND = log_poles_DN.new_zeros(B, D, N), torch.empty_like(added_BSND)
    carry_back(log_poles_DN, residues_DN, nothing_BDN, added_BSND, after_BSND, L, F, rows)
    decay_ND = torch.exp(log_poles_DN.mT * min(L - 1, rows + 2 * (F - 1)))
    adjoint_BND = torch.addcmul(first_BND, decay_ND, after_BSND[:, 0])
    return added_BSND, adjoint_BND.mT.contiguous() * (residues_DN * torch.exp(log_poles_DN))


def adjoints(
    dy_BLD: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    rows: int,
    first_BND: Tensor | None = None,
) -> Tensor:
    """Return what every segment adds to the adjoints handed to the one before, at its place, [B, S, N, D].

    What the first segment adds to the adjoint at row 0 goes to `first_BND`, if that is asked for.
    """
    B, L, _ = z_BLE.shape
    D, N = log_poles_DN.shape
    S = -(-L // rows)
    added_BSND = torch.empty(B, S, N, D, dtype=torch.float32, device=z_BLE.device)
    inputs, shape = launch(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN)
    programs = S - 1 if first_BND is None else S
    if programs:
        options = fitted(ADJOINTS, z_BLE.dtype, N)
        adjoints_kernel[(triton.cdiv(D, options["C"]), programs, B)](
            *inputs, dy_BLD, added_BSND, added_BSND if first_BND is None else first_BND, L, S, *shape, span=rows,
            **options,
        )  # fmt: skip
    return added_BSND


def carry_back(
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    dmodes_BDN: Tensor,
    added_BSND: Tensor,
    after_BSND: Tensor,
    L: int,
    F: int,
    rows: int,
) -> Tensor:
    """Write the adjoints handed to every segment to `after_BSND`, which may be where what they add is."""
    B, S, N, D = added_BSND.shape
    carry_back_kernel[(triton.cdiv(D, 128), N, B)](
        log_poles_DN, residues_DN, dmodes_BDN, added_BSND, after_BSND, L, S, D, F, N, C=128, span=rows, U=8,
        num_warps=4, **FUSED,
    )  # fmt: skip
    return after_BSND


def gradients(
    dy_BLD: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    before_BSND: Tensor,
    after_BSND: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what `backward` does, from the modes before every segment and the adjoints handed to it."""
    B, L, E = z_BLE.shape
    D, N = log_poles_DN.shape
    F, S = featurizer_EK.shape[1], before_BSND.shape[1]
    G = F + (bias_E is not None)
    dz_BLE = torch.empty(B, L, E, dtype=z_BLE.dtype, device=z_BLE.device)
    dpast_BPE, dstate_BDN = torch.empty_like(past_BPE), log_poles_DN.new_empty(B, D, N)
    partial_XYD = torch.empty(B * S, 2 * N + 1 + 3 * G, D, dtype=torch.float32, device=z_BLE.device)
    inputs, shape = launch(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN)
    options = fitted(UP, z_BLE.dtype, N)
    up_kernel[(triton.cdiv(D, options["C"]), S, B)](
        *inputs, residues_DN, skip_D, before_BSND, after_BSND, dy_BLD, dz_BLE, dpast_BPE, partial_XYD, L, *shape,
        span=rows, **options,
    )  # fmt: skip
    options = fitted(DOWN, z_BLE.dtype, N)
    down_kernel[(triton.cdiv(D, options["C"]), S, B)](
        *inputs, residues_DN, skip_D, after_BSND, dy_BLD, dz_BLE, dpast_BPE, dstate_BDN, partial_XYD, L, *shape,
        span=rows, **options,
    )  # fmt: skip
    dresidues_ND, dlog_poles_ND, dskip_1D, dfilters_YD = partial_XYD.sum(dim=0).split([N, N, 1, 3 * G])
    dfilters_EG = dfilters_YD.view(3, G, D).transpose(1, 2).reshape(E, G)
    parameters = (dfilters_EG[:, :F], dfilters_EG[:, F:].flatten(), dlog_poles_ND.mT, dresidues_ND.mT, dskip_1D[0])
    # each in memory of its own, as outputs of an operator must be
    dtaps, dbias, *others = (x.clone(memory_format=torch.contiguous_format) for x in parameters)
    return dz_BLE, dpast_BPE, dtaps, dbias, *others, dstate_BDN
