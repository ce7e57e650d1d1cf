"""Hyena-SE forward: a few taps, in registers. A program walks down its rows, reading z once and writing y once."""

# C channels a program, D width, E = 3D, F featurizer taps, K inner taps, P = K-1

import triton
import triton.language as tl

from kernels.rows import feature, fir, load_filters, load_history, load_taps, place, push


@triton.jit
def gated_history(
    z,
    z_past,
    w_past,
    t,
    stride: tl.constexpr,
    channel,
    mask,
    filters,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
):
    """The K-1 gated inputs before row t, newest first: computed, or the state at the start of the sequence."""
    w = ()
    for _ in tl.static_range(K - 1):
        w = w + (tl.zeros(channel.shape, tl.float32),)
    if t == 0:
        for j in tl.static_range(K - 1):
            w = push(tl.load(w_past + j * D + channel, mask=mask, other=0.0), w, K)
    else:
        start = t - (K - 1)
        k_past, v_past = load_history(z, z_past, start, stride, channel, mask, D, F, 1, 3)
        for j in tl.static_range(K - 1):
            k = tl.load(z + (start + j) * stride + channel + D, mask=mask, other=0.0).to(tl.float32)
            v = tl.load(z + (start + j) * stride + channel + 2 * D, mask=mask, other=0.0).to(tl.float32)
            gated = feature(k, k_past, filters[1], F) * feature(v, v_past, filters[2], F)
            w = push(gated, w, K)
            k_past = push(k, k_past, F)
            v_past = push(v, v_past, F)
    return w


@triton.jit
def load_rows(p, stride: tl.constexpr, D: tl.constexpr, U: tl.constexpr):
    """U rows of the three thirds, as they are in memory."""
    q = ()
    k = ()
    v = ()
    for u in tl.static_range(U):
        q = q + (tl.load(p + u * stride),)
        k = k + (tl.load(p + u * stride + D),)
        v = v + (tl.load(p + u * stride + 2 * D),)
    return q, k, v


@triton.jit
def row_forward(q, k, v, past, w_past, filters, inner, F: tl.constexpr, K: tl.constexpr):
    """One row: y, and the histories for the next."""
    q = q.to(tl.float32)
    k = k.to(tl.float32)
    v = v.to(tl.float32)
    w = feature(k, past[1], filters[1], F) * feature(v, past[2], filters[2], F)
    c = fir(w, w_past, inner, K)
    y = feature(q, past[0], filters[0], F) * c
    past = (push(q, past[0], F), push(k, past[1], F), push(v, past[2], F))
    return y, past, push(w, w_past, K)


@triton.jit(do_not_specialize=["L", "rows"])
def direct_forward(
    z,
    z_past,
    w_past,
    featurizer,
    bias,
    inner_taps,
    skip,
    y,
    w_last,
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
    C: tl.constexpr,
    U: tl.constexpr,
):
    """Rows [rows i, rows (i+1)) of C channels of one sequence; w_last [B, K-1, D] gets the last gated inputs."""
    channel, mask = place(D, C)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b
    z_past += b * (F - 1) * 3 * D
    w_past += b * (K - 1) * D
    y += b * L * D
    w_last += b * (K - 1) * D
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    inner = load_taps(inner_taps, channel // (D // G), mask, K)
    if SKIP:  # the direct path is one more weight on the current input
        inner = (inner[0] + tl.load(skip + channel, mask=mask, other=0.0),) + inner[1:]

    t = tl.program_id(1).to(tl.int64) * rows
    stop = tl.minimum(t + rows, L)
    w = gated_history(z, z_past, w_past, t, stride, channel, mask, filters, D, F, K)
    past = load_history(z, z_past, t, stride, channel, mask, D, F)
    whole = (stop - t) // U
    p = z + t * stride + channel
    out = y + t * D + channel
    if whole > 0:
        q, k, v = load_rows(p, stride, D, U)
        for i in range(whole):
            p += U * stride
            # the next rows travel while these are computed; after the last, the same rows again rather than none
            ahead = p - (i + 1 >= whole).to(tl.int32) * (U * stride)
            q_next, k_next, v_next = load_rows(ahead, stride, D, U)
            for u in tl.static_range(U):
                y_row, past, w = row_forward(q[u], k[u], v[u], past, w, filters, inner, F, K)
                tl.store(out + u * D, y_row.to(y.dtype.element_ty), mask=mask)
            q, k, v = q_next, k_next, v_next
            out += U * D
    for _ in range(whole * U, stop - t):
        q1, k1, v1 = load_rows(p, stride, D, 1)
        y_row, past, w = row_forward(q1[0], k1[0], v1[0], past, w, filters, inner, F, K)
        tl.store(out, y_row.to(y.dtype.element_ty), mask=mask)
        p += stride
        out += D
    if stop == L:
        for j in tl.static_range(K - 1):
            tl.store(w_last + (K - 2 - j) * D + channel, w[j], mask=mask)
