"""Hyena-LI forward in Triton: the modes before every segment of rows, then the outputs of all segments at once.

A program owns C channels and walks down the rows of its segment with the modes in registers. Rows are loaded U at a
time, one group ahead of their use.
"""

# B batch, L length, D width, E = 3D projected channels, S segments, N modes, F featurizer taps, H = F - 1
# C channels a program; a tuple of n tensors [C] is written n x [C]; the thirds of E are 0 = q, 1 = k, 2 = v

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hyena_li.modes import advance, load_modes, load_thirds, pick, push_all, store_modes, weigh, zeros
from kernels.rows import FUSED, everywhere, feature, load_filters, load_history, load_taps, place

# channels and warps a program, rows a group; a segment has `span` rows
STATES = {"C": 64, "num_warps": 1, "U": 8} | FUSED
OUTPUT = {"C": 64, "num_warps": 1, "U": 8} | FUSED


@triton.jit
def added(new, history, filters, modes, rates, F, N, PRECISE):
    """One row's gift to the modes; history and modes after it."""
    w_C = feature(new[0], history[0], filters[0], F) * feature(new[1], history[1], filters[1], F)
    return push_all(new, history, 2, F), advance(modes, w_C, rates, N, PRECISE)


@triton.jit(do_not_specialize=("L", "S"))
def states_kernel(
    z, past, taps, bias, rates, gifts, last, L, S, stride_batch,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """What every segment adds to the modes at its end; it goes to the next one's place, of the last one to `last`."""
    channel_C, mask_C = place(D, C)
    segment, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    z += batch * stride_batch
    t = segment * span
    history = load_history(z, past + batch * (F - 1) * 3 * D, t, stride, channel_C, mask_C, D, F, 1, 3)
    filters = load_filters(taps, bias, channel_C, mask_C, D, F, BIAS, 1, 3)
    rates = load_taps(rates, channel_C, mask_C, N)
    modes = zeros(C, N)
    count = tl.minimum(L - t, span).to(tl.int32)
    whole = count - count % U
    p = z + t * stride + channel_C
    rows = load_thirds(p, whole, stride, D, 1, 3, U)
    for r in range(0, whole, U):
        p += U * stride
        ahead = load_thirds(p, whole - U - r, stride, D, 1, 3, U)
        for u in tl.static_range(U):
            history, modes = added(pick(rows, u, 2), history, filters, modes, rates, F, N, PRECISE)
        rows = ahead
    for r in range(whole, count):
        left = pick(load_thirds(p, count - r, stride, D, 1, 3, 1), 0, 2)
        history, modes = added(left, history, filters, modes, rates, F, N, PRECISE)
        p += stride
    if segment + 1 < S:
        store_modes(gifts + (batch * S + segment + 1) * N * D + channel_C, modes, mask_C, D, N)
    else:
        store_modes(last + batch * N * D + channel_C, modes, mask_C, D, N)


@triton.jit(do_not_specialize=("S",))
def carry_kernel(
    log_poles, modes, added, before, S, D: tl.constexpr, N: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span
):  # fmt: skip
    """One mode of C channels from segment to segment: turn what the segments add into the modes before each."""
    channel_C, mask_C = place(D, C)
    n, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    log_pole_C = tl.load(log_poles + channel_C * N + n, mask=mask_C, other=0.0)
    decay_C = tl.exp(log_pole_C.to(tl.float64) * span).to(tl.float32)
    mode_C = tl.load(modes + (batch * D + channel_C) * N + n, mask=mask_C, other=0.0)
    p = (batch * S * N + n) * D + channel_C
    tl.store(before + p, mode_C, mask=mask_C)
    for i in range(1, S, U):
        p += N * D
        segment_C = everywhere(i, channel_C)
        gifts = ()
        for u in tl.static_range(U):
            gifts = gifts + (tl.load(added + p + u * N * D, mask=mask_C & (segment_C + u < S), other=0.0),)
        for u in tl.static_range(U):
            mode_C = decay_C * mode_C + gifts[u]
            tl.store(before + p + u * N * D, mode_C, mask=mask_C & (segment_C + u < S))
        p += (U - 1) * N * D


@triton.jit
def output(rows, u: tl.constexpr, history, filters, modes, rates, residues, skip_C, F, N, PRECISE):
    """One row: the output, and history and modes after it."""
    new = pick(rows, u, 3)
    q_C = feature(new[0], history[0], filters[0], F)
    w_C = feature(new[1], history[1], filters[1], F) * feature(new[2], history[2], filters[2], F)
    modes = advance(modes, w_C, rates, N, PRECISE)
    return q_C * weigh(modes, residues, skip_C * w_C, N), push_all(new, history, 3, F), modes


@triton.jit(do_not_specialize=("L",))
def output_kernel(
    z, past, taps, bias, rates, residues, skip, before, y, last, L, stride_batch,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """The outputs of every segment, from the modes before it; the last one also stores the modes after it."""
    channel_C, mask_C = place(D, C)
    segment, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    z += batch * stride_batch
    t = segment * span
    history = load_history(z, past + batch * (F - 1) * 3 * D, t, stride, channel_C, mask_C, D, F)
    filters = load_filters(taps, bias, channel_C, mask_C, D, F, BIAS)
    rates = load_taps(rates, channel_C, mask_C, N)
    residues = load_taps(residues, channel_C, mask_C, N)
    skip_C = tl.load(skip + channel_C, mask=mask_C, other=0.0)
    modes = load_modes(before + (batch * tl.num_programs(1) + segment) * N * D + channel_C, mask_C, D, N)
    count = tl.minimum(L - t, span).to(tl.int32)
    whole = count - count % U
    p = z + t * stride + channel_C
    y += (batch * L + t) * D + channel_C
    rows = load_thirds(p, whole, stride, D, 0, 3, U)
    for r in range(0, whole, U):
        p += U * stride
        ahead = load_thirds(p, whole - U - r, stride, D, 0, 3, U)
        for u in tl.static_range(U):
            y_C, history, modes = output(rows, u, history, filters, modes, rates, residues, skip_C, F, N, PRECISE)
            tl.store(y + u * D, y_C.to(y.dtype.element_ty), mask=mask_C)
        rows = ahead
        y += U * D
    for r in range(whole, count):
        left = load_thirds(p, count - r, stride, D, 0, 3, 1)
        y_C, history, modes = output(left, 0, history, filters, modes, rates, residues, skip_C, F, N, PRECISE)
        tl.store(y, y_C.to(y.dtype.element_ty), mask=mask_C)
        p += stride
        y += D
    if segment == tl.num_programs(1) - 1:
        store_modes(last + (batch * D + channel_C) * N, modes, mask_C, 1, N)


def launch(
    z_BLE: Tensor, past_BPE: Tensor, featurizer_EK: Tensor, bias_E: Tensor | None, log_poles_DN: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """What every kernel that walks along rows takes first, and what it takes last."""
    D, N = log_poles_DN.shape
    precise = z_BLE.dtype is torch.float32
    # what is multiplied by at every step: lambda, or lambda - 1 where the inputs deserve the last bits
    rates_DN = torch.expm1(log_poles_DN) if precise else torch.exp(log_poles_DN)
    tensors = (z_BLE, past_BPE, featurizer_EK, featurizer_EK if bias_E is None else bias_E, rates_DN)
    return tensors, (z_BLE.stride(0), z_BLE.stride(1), D, featurizer_EK.shape[1], N, bias_E is not None, precise)


def fitted(options: dict[str, int], dtype: torch.dtype, modes: int) -> dict[str, int]:
    """Fewer channels a program where values or modes would not fit into its registers."""
    return options | {"C": min(options["C"], 32)} if dtype is torch.float32 or modes > 16 else options


def forward(
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    modes_BDN: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run Hyena-LI on contiguous parameters and states and a z whose last stride is 1; segments have `rows` rows.

    Returns:
        y_BLD in z's dtype, the modes after the last row, and the modes before every segment, [B, S, N, D] float32.
    """
    filters = (featurizer_EK, bias_E, log_poles_DN)
    added_BSND = states(z_BLE, past_BPE, *filters, rows)
    before_BSND = carry(log_poles_DN, modes_BDN, added_BSND, added_BSND, rows)
    y_BLD, last_BDN = outputs(z_BLE, past_BPE, *filters, residues_DN, skip_D, before_BSND, rows)
    return y_BLD, last_BDN, before_BSND


def summary(
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Run what needs no modes before the first row.

    Returns:
        What `states` does, and the modes after the last row, had those before the first been zero, [B, D, N].
    """
    D, N = log_poles_DN.shape
    last_BND = log_poles_DN.new_empty(len(z_BLE), N, D)
    added_BSND = states(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, rows, last_BND)
    nothing_BDN = log_poles_DN.new_zeros(len(z_BLE), D, N)
    before_BSND = carry(log_poles_DN, nothing_BDN, added_BSND, torch.empty_like(added_BSND), rows)
    left = z_BLE.shape[1] - (before_BSND.shape[1] - 1) * rows
    end_BND = torch.addcmul(last_BND, torch.exp(log_poles_DN.mT * left), before_BSND[:, -1])
    return added_BSND, end_BND.mT.contiguous()


def states(
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    rows: int,
    last_BND: Tensor | None = None,
) -> Tensor:
    """Return what every segment adds to the modes, at the place of the next, [B, S, N, D]; the first holds nothing.

    What the last segment adds goes to `last_BND`, if that is asked for.
    """
    B, L, _ = z_BLE.shape
    D, N = log_poles_DN.shape
    S = -(-L // rows)
    added_BSND = torch.empty(B, S, N, D, dtype=torch.float32, device=z_BLE.device)
    inputs, shape = launch(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN)
    programs = S - 1 if last_BND is None else S
    if programs:
        options = fitted(STATES, z_BLE.dtype, N)
        states_kernel[(triton.cdiv(D, options["C"]), programs, B)](
            *inputs, added_BSND, added_BSND if last_BND is None else last_BND, L, S, *shape, span=rows, **options
        )
    return added_BSND


def carry(log_poles_DN: Tensor, modes_BDN: Tensor, added_BSND: Tensor, before_BSND: Tensor, rows: int) -> Tensor:
    """Write the modes before every segment to `before_BSND`, which may be where what they add is."""
    B, S, N, D = added_BSND.shape
    carry_kernel[(triton.cdiv(D, 128), N, B)](
        log_poles_DN, modes_BDN, added_BSND, before_BSND, S, D, N, C=128, span=rows, U=8, num_warps=4, **FUSED
    )
    return before_BSND


def outputs(
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    before_BSND: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Return y_BLD and the modes after the last row, from those before every segment."""
    B, L, _ = z_BLE.shape
    D, N = log_poles_DN.shape
    y_BLD = torch.empty(B, L, D, dtype=z_BLE.dtype, device=z_BLE.device)
    last_BDN = torch.empty(B, D, N, dtype=torch.float32, device=z_BLE.device)
    inputs, shape = launch(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN)
    options = fitted(OUTPUT, z_BLE.dtype, N)
    output_kernel[(triton.cdiv(D, options["C"]), before_BSND.shape[1], B)](
        *inputs, residues_DN, skip_D, before_BSND, y_BLD, last_BDN, L, *shape, span=rows, **options
    )
    return y_BLD, last_BDN
