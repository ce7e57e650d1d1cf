"""Hyena-SE backward: one walk down the rows. Gates and featurizer are computed again, nothing is read twice from afar.

At row s the post-gate's gradients are known; those of the inner filter's input, K-1 rows further up, are complete only
then, for they wait for the gradients of K-1 later outputs. Rows that late are read again: the caches still hold them.
"""

# C channels a program, D width, E = 3D, F featurizer taps, K inner taps; s the row in hand, u = s-(K-1) the late one
# a program owns rows [t, stop): it counts their gradients in the filters' sums and writes their dz

import triton
import triton.language as tl

from kernels.hyena_fir.direct_forward import gated_history
from kernels.rows import everywhere, feature, fir, load_filters, load_history, load_taps, place, push, zeros


@triton.jit
def reverse_fir(newest, past, taps, K: tl.constexpr):
    """One output of the transposed filter, K-1 rows above the newest input."""
    out = newest * taps[K - 1]
    for j in tl.static_range(1, K):
        out += past[j - 1] * taps[K - 1 - j]
    return out


@triton.jit
def correlate(sums, gradient, newest, past, K: tl.constexpr, BIAS: tl.constexpr):
    """Add one row to the gradients of K taps, and of the bias if there is one."""
    out = (sums[0] + gradient * newest,)
    for j in tl.static_range(1, K):
        out = out + (sums[j] + gradient * past[j - 1],)
    if BIAS:
        out = out + (sums[K] + gradient,)
    return out


@triton.jit
def row_at_hand(q, k, v, dy, past, w_past, dc_past, filters, inner, F: tl.constexpr, K: tl.constexpr):
    """Row s: the gradients of the post-gate's two sides, and that of the inner filter's input at row u."""
    w = feature(k, past[1], filters[1], F) * feature(v, past[2], filters[2], F)
    dc = dy * feature(q, past[0], filters[0], F)
    dq = dy * fir(w, w_past, inner, K)
    return w, dc, dq, reverse_fir(dc, dc_past, inner, K)


@triton.jit
def late_row(dw, k, v, k_past, v_past, filters, F: tl.constexpr):
    """Row u: the gradients of the pre-gate's two sides."""
    return dw * feature(v, v_past, filters[2], F), dw * feature(k, k_past, filters[1], F)


@triton.jit
def load_six(p, dy, stride: tl.constexpr, D: tl.constexpr, K: tl.constexpr, U: tl.constexpr):
    """U rows of z and dy, and of k and v K-1 rows above."""
    rows = ()
    for u in tl.static_range(U):
        late = p + (u - K + 1) * stride
        rows = rows + (
            (
                tl.load(p + u * stride),
                tl.load(p + u * stride + D),
                tl.load(p + u * stride + 2 * D),
                tl.load(dy + u * D),
                tl.load(late + D),
                tl.load(late + 2 * D),
            ),
        )
    return rows


@triton.jit
def load_six_checked(z, dy, s, stop, t, channel, mask, stride: tl.constexpr, D: tl.constexpr, K: tl.constexpr):
    """The same for one row s near the ends of the sequence: zero outside it."""
    inside = mask & (everywhere(s, channel) < stop)
    late = mask & (everywhere(s - K + 1, channel) >= t) & (everywhere(s - K + 1, channel) < stop)
    p = z + s * stride + channel
    p_late = p - (K - 1) * stride
    return (
        tl.load(p, mask=inside, other=0.0).to(tl.float32),
        tl.load(p + D, mask=inside, other=0.0).to(tl.float32),
        tl.load(p + 2 * D, mask=inside, other=0.0).to(tl.float32),
        tl.load(dy + s * D + channel, mask=inside, other=0.0).to(tl.float32),
        tl.load(p_late + D, mask=late, other=0.0).to(tl.float32),
        tl.load(p_late + 2 * D, mask=late, other=0.0).to(tl.float32),
    )


@triton.jit
def store_above(
    dz, dz_past, gradient, r, t, stop, channel, third: tl.constexpr, mask, D: tl.constexpr, F: tl.constexpr
):
    """Store dz of row r if it is this program's; rows before the sequence's first belong to the state."""
    row = everywhere(r, channel)
    value = gradient.to(dz.dtype.element_ty)
    column = channel + third * D
    tl.store(dz + r * 3 * D + column, value, mask=mask & (row >= t) & (row < stop))
    first = mask & (everywhere(t, channel) == 0)
    tl.store(dz_past + (r + F - 1) * 3 * D + column, value, mask=first & (row < 0) & (row >= 1 - F))


@triton.jit(do_not_specialize=["L", "rows"])
def direct_backward(
    z,
    z_past,
    w_past,
    featurizer,
    bias,
    inner_taps,
    skip,
    dy,
    dw_last,
    dz,
    dz_past,
    dw_past,
    partial,
    L,
    rows,
    stride_b,
    stride: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    SKIP: tl.constexpr,
    LAST: tl.constexpr,
    C: tl.constexpr,
    U: tl.constexpr,
):
    """The gradients of rows [rows i, rows (i+1)); partial [programs, K + 3 (F + BIAS), D] gets the filters' sums.

    LAST: dw_last [B, K-1, D] is the gradient of the outgoing state's gated inputs.
    """
    channel, mask = place(D, C)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b
    z_past += b * (F - 1) * 3 * D
    w_past += b * (K - 1) * D
    dy += b * L * D
    dz += b * L * 3 * D
    dz_past += b * (F - 1) * 3 * D
    dw_past += b * (K - 1) * D
    if LAST:
        dw_last += b * (K - 1) * D
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    inner = load_taps(inner_taps, channel // (D // G), mask, K)
    if SKIP:
        inner = (inner[0] + tl.load(skip + channel, mask=mask, other=0.0),) + inner[1:]

    t = tl.program_id(1).to(tl.int64) * rows
    stop = tl.minimum(t + rows, L)
    w = gated_history(z, z_past, w_past, t, stride, channel, mask, filters, D, F, K)
    past = load_history(z, z_past, t, stride, channel, mask, D, F)
    k_late, v_late = past[1], past[2]
    dc = zeros(K - 1, channel)
    dq = zeros(F - 1, channel)
    dk = zeros(F - 1, channel)
    dv = zeros(F - 1, channel)
    d_inner = zeros(K, channel)
    d_q = zeros(F + BIAS, channel)
    d_k = zeros(F + BIAS, channel)
    d_v = zeros(F + BIAS, channel)

    FILL: tl.constexpr = K + F - 2
    steady = tl.maximum(stop - t - FILL, 0) // U
    end = stop + FILL
    s = t
    while s < end:
        if (s == t + FILL) & (steady > 0):
            p = z + s * stride + channel
            p_dy = dy + s * D + channel
            out_q = dz + (s - (F - 1)) * 3 * D + channel
            out_k = dz + (s - FILL) * 3 * D + channel + D
            held = load_six(p, p_dy, stride, D, K, U)
            for i in range(steady):
                last = (i + 1 >= steady).to(tl.int32)
                p += U * stride
                p_dy += U * D
                ahead = load_six(p - last * (U * stride), p_dy - last * (U * D), stride, D, K, U)
                for j in tl.static_range(U):
                    q0, k0, v0 = held[j][0].to(tl.float32), held[j][1].to(tl.float32), held[j][2].to(tl.float32)
                    w0, dc0, dq0, dw0 = row_at_hand(
                        q0, k0, v0, held[j][3].to(tl.float32), past, w, dc, filters, inner, F, K
                    )
                    k1, v1 = held[j][4].to(tl.float32), held[j][5].to(tl.float32)
                    dk0, dv0 = late_row(dw0, k1, v1, k_late, v_late, filters, F)
                    d_inner = correlate(d_inner, dc0, w0, w, K, False)
                    d_q = correlate(d_q, dq0, q0, past[0], F, BIAS)
                    d_k = correlate(d_k, dk0, k1, k_late, F, BIAS)
                    d_v = correlate(d_v, dv0, v1, v_late, F, BIAS)
                    dz_q = reverse_fir(dq0, dq, filters[0], F)
                    dz_k = reverse_fir(dk0, dk, filters[1], F)
                    dz_v = reverse_fir(dv0, dv, filters[2], F)
                    tl.store(out_q + j * 3 * D, dz_q.to(dz.dtype.element_ty), mask=mask)
                    tl.store(out_k + j * 3 * D, dz_k.to(dz.dtype.element_ty), mask=mask)
                    tl.store(out_k + j * 3 * D + D, dz_v.to(dz.dtype.element_ty), mask=mask)
                    past = (push(q0, past[0], F), push(k0, past[1], F), push(v0, past[2], F))
                    k_late, v_late = push(k1, k_late, F), push(v1, v_late, F)
                    w, dc = push(w0, w, K), push(dc0, dc, K)
                    dq, dk, dv = push(dq0, dq, F), push(dk0, dk, F), push(dv0, dv, F)
                held = ahead
                out_q += U * 3 * D
                out_k += U * 3 * D
            s += steady * U
        q0, k0, v0, dy0, k1, v1 = load_six_checked(z, dy, s, L, t, channel, mask, stride, D, K)
        w0, dc0, dq0, dw0 = row_at_hand(q0, k0, v0, dy0, past, w, dc, filters, inner, F, K)
        u = s - (K - 1)
        late = everywhere(u, channel)
        tl.store(dw_past + (u + K - 1) * D + channel, dw0, mask=mask & (late < 0))
        if LAST:
            kept = u - (L - K + 1)
            dw0 += tl.load(
                dw_last + kept * D + channel,
                mask=mask & (everywhere(kept, channel) >= 0) & (late >= 0) & (late < L),
                other=0.0,
            )
        dk0, dv0 = late_row(dw0, k1, v1, k_late, v_late, filters, F)
        dk0 = tl.where(late >= t, dk0, 0.0)
        dv0 = tl.where(late >= t, dv0, 0.0)
        mine = everywhere(s, channel) < stop
        d_inner = correlate(d_inner, tl.where(mine, dc0, 0.0), w0, w, K, False)
        d_q = correlate(d_q, tl.where(mine, dq0, 0.0), q0, past[0], F, BIAS)
        d_k = correlate(d_k, tl.where(late < stop, dk0, 0.0), k1, k_late, F, BIAS)
        d_v = correlate(d_v, tl.where(late < stop, dv0, 0.0), v1, v_late, F, BIAS)
        dz_q = reverse_fir(dq0, dq, filters[0], F)
        dz_k = reverse_fir(dk0, dk, filters[1], F)
        dz_v = reverse_fir(dv0, dv, filters[2], F)
        store_above(dz, dz_past, dz_q, s - (F - 1), t, stop, channel, 0, mask, D, F)
        store_above(dz, dz_past, dz_k, u - (F - 1), t, stop, channel, 1, mask, D, F)
        store_above(dz, dz_past, dz_v, u - (F - 1), t, stop, channel, 2, mask, D, F)
        past = (push(q0, past[0], F), push(k0, past[1], F), push(v0, past[2], F))
        if u >= t:
            k_late, v_late = push(k1, k_late, F), push(v1, v_late, F)
        w, dc = push(w0, w, K), push(dc0, dc, K)
        dq, dk, dv = push(dq0, dq, F), push(dk0, dk, F), push(dv0, dv, F)
        s += 1

    partial += (b * tl.num_programs(1) + tl.program_id(1)) * (K + 3 * (F + BIAS)) * D + channel
    sums = d_inner + d_q + d_k + d_v
    for j in tl.static_range(K + 3 * (F + BIAS)):
        tl.store(partial + j * D, sums[j], mask=mask)
