"""The walk up of Hyena-LI's backward: the gradients of q, residues, poles and skip.

It recomputes the modes from those before the segment. The featurizer's gradient at a row needs the H rows after it, and
the adjoint handed to a segment is that of the row 2H after its end: the walk goes 2H rows beyond the segment.
"""

# B batch, L length, D width, E = 3D projected channels, S segments, N modes, F featurizer taps, H = F - 1
# C channels a program; a tuple of n tensors [C] is written n x [C]; the thirds of E are 0 = q, 1 = k, 2 = v

import triton
import triton.language as tl

from kernels.hyena_li.modes import (
    advance,
    decayed,
    gather,
    load_modes,
    load_rows,
    load_thirds,
    nonzero,
    pick,
    push_all,
    store_modes,
    weigh,
    zeros,
)
from kernels.rows import everywhere, feature, fir, load_filters, load_history, load_taps, place, push


@triton.jit
def accumulate(sums, x_C, modes, N: tl.constexpr):
    """Add x by every mode: N x [C]."""
    out = ()
    for n in tl.static_range(N):
        out = out + (sums[n] + x_C * modes[n],)
    return out


@triton.jit
def fade(modes, rates, inside_C, N: tl.constexpr, PRECISE: tl.constexpr):
    """One step's decay inside the sequence; nothing decays after the last row."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tl.where(inside_C, decayed(modes[n], rates[n], PRECISE), modes[n]),)
    return out


@triton.jit
def up_row(
    dy_C, new, history, gradients, modes, doubles, sums, filters, filter_up, rates, residues, skip_C,
    F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """One row of the walk up; doubles_t = lambda doubles_(t-1) + modes_t: the modes and their derivatives by log poles.

    Returns:
        The gradient of z's q at H rows before, and what is carried to the next row.
    """
    q_C = feature(new[0], history[0], filters[0], F)
    w_C = feature(new[1], history[1], filters[1], F) * feature(new[2], history[2], filters[2], F)
    modes = advance(modes, w_C, rates, N, PRECISE)
    derivatives = ()
    for n in tl.static_range(N):
        derivatives = derivatives + (decayed(doubles[n], rates[n], PRECISE) + modes[n],)
    x_C = dy_C * q_C
    gradient_C = dy_C * weigh(modes, residues, skip_C * w_C, N)
    sums = (
        accumulate(sums[0], x_C, modes, N),
        accumulate(sums[1], x_C, derivatives, N),
        gather(sums[2], gradient_C, (new[0],) + history[0], F, BIAS),
        sums[3] + x_C * w_C,
    )
    dz_C = fir(gradient_C, gradients, filter_up, F)
    return dz_C, push_all(new, history, 3, F), push(gradient_C, gradients, F), modes, derivatives, sums


@triton.jit
def store_up(dz, dpast, dz_C, r, t, mask_C, D: tl.constexpr, F: tl.constexpr, CHECK: tl.constexpr):
    """Store a gradient at H rows before row r of the segment that begins at row t, if that is not another segment's."""
    if CHECK:
        r_C = everywhere(r, mask_C)
        tl.store(dz, dz_C.to(dz.dtype.element_ty), mask=mask_C & (r_C >= F - 1))
        tl.store(dpast + (t + r) * 3 * D, dz_C.to(dz.dtype.element_ty), mask=mask_C & (t + r_C < F - 1))
    else:
        tl.store(dz, dz_C.to(dz.dtype.element_ty), mask=mask_C)


@triton.jit
def beyond(
    p, dy, dz, dpast, after, history, gradients, modes, doubles, sums, filters, filter_up, rates, residues, skip_C,
    t, count, L, mask_C, stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    """Walk 2H rows beyond the segment, where the derivatives only fade, and meet the adjoint handed to it.

    Returns:
        The gradient of the log poles: N x [C].
    """
    derivatives, dpoles = (), ()
    for n in tl.static_range(N):
        derivatives = derivatives + (doubles[n] - modes[n],)
        dpoles = dpoles + (sums[1][n] - sums[0][n],)
    for r in range(count, count + 2 * (F - 1)):
        new = pick(load_thirds(p, L - t - r, stride, D, 0, 3, 1), 0, 3)
        inside_C = everywhere(t + r, mask_C) < L
        dy_C = tl.load(dy, mask=inside_C, other=0.0).to(tl.float32)
        q_C = feature(new[0], history[0], filters[0], F)
        w_C = feature(new[1], history[1], filters[1], F) * feature(new[2], history[2], filters[2], F)
        modes = advance(modes, w_C, rates, N, PRECISE)
        gradient_C = dy_C * weigh(modes, residues, skip_C * w_C, N)
        dz_C = fir(gradient_C, gradients, filter_up, F)
        store_up(dz, dpast, dz_C, r, t, mask_C & (everywhere(r, mask_C) < count + F - 1), D, F, True)
        derivatives = fade(derivatives, rates, inside_C, N, PRECISE)
        dpoles = accumulate(dpoles, dy_C * q_C, derivatives, N)
        history, gradients = push_all(new, history, 3, F), push(gradient_C, gradients, F)
        p += stride
        dy += D
        dz += 3 * D
    derivatives = fade(derivatives, rates, everywhere(t + count + 2 * (F - 1), mask_C) < L, N, PRECISE)
    adjoints = load_modes(after, mask_C, D, N)
    residues = nonzero(residues, N)
    out = ()
    for n in tl.static_range(N):
        out = out + (residues[n] * (dpoles[n] + adjoints[n] * derivatives[n]),)
    return out


@triton.jit(do_not_specialize=("L",))
def up_kernel(
    z, past, taps, bias, rates, residues, skip, before, after, dy, dz, dpast, partial, L, stride_batch,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """Walk up: the gradients of q, of its featurizer, of residues, poles and skip."""
    channel_C, mask_C = place(D, C)
    segment, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    place_of_modes = (batch * tl.num_programs(1) + segment) * N * D + channel_C
    z += batch * stride_batch
    t = segment * span
    history = load_history(z, past + batch * (F - 1) * 3 * D, t, stride, channel_C, mask_C, D, F)
    filters = load_filters(taps, bias, channel_C, mask_C, D, F, BIAS)
    filter_up = ()
    for j in tl.static_range(F):
        filter_up = filter_up + (filters[0][F - 1 - j],)
    rates, residues = load_taps(rates, channel_C, mask_C, N), load_taps(residues, channel_C, mask_C, N)
    skip_C = tl.load(skip + channel_C, mask=mask_C, other=0.0)
    modes = load_modes(before + place_of_modes, mask_C, D, N)
    doubles = modes
    gradients = zeros(C, F - 1)
    sums = (zeros(C, N), zeros(C, N), zeros(C, F + BIAS), tl.zeros((C,), tl.float32))
    count = tl.minimum(L - t, span).to(tl.int32)
    whole = count - count % U
    p = z + t * stride + channel_C
    dy += (batch * L + t) * D + channel_C
    dz += (batch * L + t - (F - 1)) * 3 * D + channel_C
    dpast += batch * (F - 1) * 3 * D + channel_C
    rows, dys = load_thirds(p, whole, stride, D, 0, 3, U), load_rows(dy, whole, D, U)
    for r in range(0, whole, U):
        p += U * stride
        dy += U * D
        ahead, dy_ahead = load_thirds(p, whole - U - r, stride, D, 0, 3, U), load_rows(dy, whole - U - r, D, U)
        for u in tl.static_range(U):
            dz_C, history, gradients, modes, doubles, sums = up_row(
                dys[u].to(tl.float32), pick(rows, u, 3), history, gradients, modes, doubles, sums,
                filters, filter_up, rates, residues, skip_C, F, N, BIAS, PRECISE,
            )  # fmt: skip
            store_up(dz + u * 3 * D, dpast, dz_C, r + u, t, mask_C, D, F, u < F - 1)
        rows, dys = ahead, dy_ahead
        dz += U * 3 * D
    for r in range(whole, count):
        left = load_thirds(p, count - r, stride, D, 0, 3, 1)
        dz_C, history, gradients, modes, doubles, sums = up_row(
            tl.load(dy).to(tl.float32), pick(left, 0, 3), history, gradients, modes, doubles, sums,
            filters, filter_up, rates, residues, skip_C, F, N, BIAS, PRECISE,
        )  # fmt: skip
        store_up(dz, dpast, dz_C, r, t, mask_C, D, F, True)
        p += stride
        dy += D
        dz += 3 * D
    after += place_of_modes
    dpoles = beyond(
        p, dy, dz, dpast, after, history, gradients, modes, doubles, sums, filters, filter_up, rates, residues, skip_C,
        t, count, L, mask_C, stride, D, F, N, BIAS, PRECISE,
    )  # fmt: skip
    partial += (batch * tl.num_programs(1) + segment) * (2 * N + 1 + 3 * (F + BIAS)) * D + channel_C
    store_modes(partial, sums[0], mask_C, D, N)
    store_modes(partial + N * D, dpoles, mask_C, D, N)
    tl.store(partial + 2 * N * D, sums[3], mask=mask_C)
    store_modes(partial + (2 * N + 1) * D, sums[2], mask_C, D, F + BIAS)
