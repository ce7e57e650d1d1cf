"""The walk down of Hyena-LI's backward: the gradients of k, v and the state.

The featurizer's gradient at a row needs the H rows after it. So the rows that a program owns are H later than those of
its segment, and it begins another H later, at the adjoint handed to it. The first segment's also owns the first H rows.
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
    narrow,
    nonzero,
    pick,
    push_all,
    store_modes,
    weigh,
    widen,
    zeros,
)
from kernels.rows import everywhere, feature, fir, load_before, load_filters, load_history, load_taps, place


@triton.jit
def down_row(
    dy_C, oldest, window, later, adjoints, sums, filters, rates, residues, skip_C,
    F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """One row of the walk down.

    Returns:
        The gradients of z's k and v at this row, and what is carried to the row before.
    """
    full = widen(window, oldest, 3)
    q_C = feature(full[0][0], full[0][1:], filters[0], F)
    k_C = feature(full[1][0], full[1][1:], filters[1], F)
    v_C = feature(full[2][0], full[2][1:], filters[2], F)
    x_C = dy_C * q_C
    adjoints = advance(adjoints, x_C, rates, N, PRECISE)
    dw_C = weigh(adjoints, residues, skip_C * x_C, N)
    new = (dw_C * v_C, dw_C * k_C)
    dz = (fir(new[0], later[0], filters[1], F), fir(new[1], later[1], filters[2], F))
    sums = (gather(sums[0], new[0], full[1], F, BIAS), gather(sums[1], new[1], full[2], F, BIAS))
    return dz, narrow(full, 3), push_all(new, later, 2, F), adjoints, sums


@triton.jit
def store_down(dz, gradients, mask_C, D: tl.constexpr):
    """Store the gradients of z's k and v at one row."""
    tl.store(dz + D, gradients[0].to(dz.dtype.element_ty), mask=mask_C)
    tl.store(dz + 2 * D, gradients[1].to(dz.dtype.element_ty), mask=mask_C)


@triton.jit
def choose(choice_C, one, other, N: tl.constexpr):
    """N x [C] of one where the choice says so, of the other elsewhere."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tl.where(choice_C, one[n], other[n]),)
    return out


@triton.jit
def down_slowly(
    z, past, dy, dz, top, count, high, L, window, later, adjoints, sums, filters, rates, residues, skip_C, channel_C,
    mask_C, stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    """Walk down rows top-1 .. top-count one by one; rows from `high` on are owned by the next segment."""
    stay = ()
    for _ in tl.static_range(N):
        stay = stay + (tl.full(mask_C.shape, 0.0 if PRECISE else 1.0, tl.float32),)
    for r in range(0, count):
        t = top - 1 - r
        t_C = everywhere(t, channel_C)
        oldest = ()
        for third in tl.static_range(3):
            place_C = third * D + channel_C
            oldest = oldest + (load_before(z, past, t_C - F + 1, stride, place_C, mask_C, 3 * D, F),)
        dz_C, window, later, adjoints, new_sums = down_row(
            tl.load(dy + t * D).to(tl.float32), oldest, window, later, adjoints, sums, filters,
            choose(t_C == L - 1, stay, rates, N), residues, skip_C, F, N, BIAS, PRECISE,
        )  # fmt: skip
        store_down(dz + t * 3 * D, dz_C, mask_C & (t_C < high), D)
        sums = (
            choose(t_C < high, new_sums[0], sums[0], F + BIAS),
            choose(t_C < high, new_sums[1], sums[1], F + BIAS),
        )
    return window, later, adjoints, sums


@triton.jit
def store_beginning(dpast, dmodes, later, adjoints, filters, rates, residues, mask_C, D, F, N, PRECISE: tl.constexpr):
    """At row 0: the gradients of the state that came in."""
    nothing = zeros(mask_C.shape[0], 2)
    for j in tl.static_range(1, F):
        gradients = (
            fir(nothing[0], later[0], filters[1], F),
            fir(nothing[1], later[1], filters[2], F),
        )
        store_down(dpast + (F - 1 - j) * 3 * D, gradients, mask_C, D)
        later = push_all(nothing, later, 2, F)
    for n in tl.static_range(N):
        tl.store(dmodes + n, residues[n] * decayed(adjoints[n], rates[n], PRECISE), mask=mask_C)


@triton.jit(do_not_specialize=("L",))
def down_kernel(
    z, past, taps, bias, rates, residues, skip, after, dy, dz, dpast, dmodes, partial, L, stride_batch,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr, BIAS: tl.constexpr,
    PRECISE: tl.constexpr, C: tl.constexpr, U: tl.constexpr, span,
):  # fmt: skip
    """Walk down: the gradients of k, v, their featurizers and, at the first row, the state."""
    channel_C, mask_C = place(D, C)
    segment, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    z += batch * stride_batch
    past += batch * (F - 1) * 3 * D
    dy += batch * L * D + channel_C
    dz += batch * L * 3 * D + channel_C
    low = segment * span + F - 1
    high = low + span
    top = tl.minimum(high + F - 1, L)
    whole = tl.minimum(tl.maximum(L - 1 - low, 0) // U * U, span).to(tl.int32)  # never the last row of all
    window = load_history(z, past, top, stride, channel_C, mask_C, D, F)
    later = (zeros(C, F - 1), zeros(C, F - 1))
    sums = (zeros(C, F + BIAS), zeros(C, F + BIAS))
    filters = load_filters(taps, bias, channel_C, mask_C, D, F, BIAS)
    rates, residues = load_taps(rates, channel_C, mask_C, N), nonzero(load_taps(residues, channel_C, mask_C, N), N)
    skip_C = tl.load(skip + channel_C, mask=mask_C, other=0.0)
    adjoints = load_modes(after + (batch * tl.num_programs(1) + segment) * N * D + channel_C, mask_C, D, N)
    window, later, adjoints, sums = down_slowly(
        z, past, dy, dz, top, (top - low - whole).to(tl.int32), high, L, window, later, adjoints, sums, filters, rates,
        residues, skip_C, channel_C, mask_C, stride, D, F, N, BIAS, PRECISE,
    )  # fmt: skip
    p = z + (low + whole - F) * stride + channel_C
    pdy = dy + (low + whole - 1) * D
    pdz = dz + (low + whole - 1) * 3 * D
    rows, dys = load_thirds(p, whole, -stride, D, 0, 3, U), load_rows(pdy, whole, -D, U)
    for r in range(0, whole, U):
        p -= U * stride
        pdy -= U * D
        ahead, dy_ahead = load_thirds(p, whole - U - r, -stride, D, 0, 3, U), load_rows(pdy, whole - U - r, -D, U)
        for u in tl.static_range(U):
            dz_C, window, later, adjoints, sums = down_row(
                dys[u].to(tl.float32), pick(rows, u, 3), window, later, adjoints, sums,
                filters, rates, residues, skip_C, F, N, BIAS, PRECISE,
            )  # fmt: skip
            store_down(pdz - u * 3 * D, dz_C, mask_C, D)
        rows, dys = ahead, dy_ahead
        pdz -= U * 3 * D
    first = tl.where(segment == 0, tl.minimum(low, L), 0)
    window, later, adjoints, sums = down_slowly(
        z, past, dy, dz, first, first.to(tl.int32), high, L, window, later, adjoints, sums, filters, rates, residues,
        skip_C, channel_C, mask_C, stride, D, F, N, BIAS, PRECISE,
    )  # fmt: skip
    if segment == 0:
        store_beginning(
            dpast + batch * (F - 1) * 3 * D + channel_C, dmodes + (batch * D + channel_C) * N, later, adjoints,
            filters, rates, residues, mask_C, D, F, N, PRECISE,
        )  # fmt: skip
    partial += (batch * tl.num_programs(1) + segment) * (2 * N + 1 + 3 * (F + BIAS)) * D + channel_C
    store_modes(partial + (2 * N + 1 + F + BIAS) * D, sums[0], mask_C, D, F + BIAS)
    store_modes(partial + (2 * N + 1 + 2 * (F + BIAS)) * D, sums[1], mask_C, D, F + BIAS)
