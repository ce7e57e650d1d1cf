"""Hyena-MR backward, in two walks, both recomputing gates and featurizer.

The walk down computes the outputs of the inner filter again: from them come the gradient of the post-gate q and, as
products of the output's gradient and the inputs, that of the filter. The walk up is the transposed filter: from it come
the gradients of the pre-gate k and of v.
"""

# D width, F featurizer taps, K inner taps; the layout of columns, segments and tiles is told in tiles.py

import triton
import triton.language as tl

from kernels.hyena_fir.banded_forward import featurize_block, gated_past, times
from kernels.hyena_fir.direct_backward import correlate, reverse_fir, zeros
from kernels.hyena_fir.direct_forward import everywhere, load_filters
from kernels.hyena_fir.tiles import (
    columns,
    convolve,
    fetch,
    identity,
    load_above,
    load_block,
    multiply,
    no_past,
    operand_of,
    pack,
    toeplitz,
)
from kernels.rows import push


@triton.jit
def widen(rows):
    """16 rows as float32."""
    out = ()
    for j in tl.static_range(16):
        out = out + (rows[j].to(tl.float32),)
    return out


@triton.jit
def correlate_block(sums, gradients, rows, above, F: tl.constexpr, BIAS: tl.constexpr):
    """Add 16 rows to the gradients of a featurizer filter."""
    for j in tl.static_range(16):
        row = rows[j].to(tl.float32)
        sums = correlate(sums, gradients[j], row, above, F, BIAS)
        above = push(row, above, F)
    return sums


@triton.jit
def store_sums(partial, sums, channel, mask, D: tl.constexpr, N: tl.constexpr):
    """Store N sums [32] of a segment."""
    for j in tl.static_range(N):
        tl.store(partial + j * D + channel, sums[j], mask=mask)


@triton.jit
def block_down(
    p, p_dy, q_past, k_past, v_past, left, past, filters, matrices, unit, direct,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, BLOCKS: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """16 rows of the walk down: z's q, gated inputs (also as an operand), gradients of the filter's output and of q."""
    q_rows = load_block(p, left, stride, CHECK)
    k, k_past = featurize_block(load_block(p + D, left, stride, CHECK), k_past, filters[1], F)
    v, v_past = featurize_block(load_block(p + 2 * D, left, stride, CHECK), v_past, filters[2], F)
    dy = widen(load_block(p_dy, left, D, CHECK))
    w = times(k, v)
    newest = operand_of(w, unit, 1)
    c = convolve(newest, past, matrices, BLOCKS)
    q, q_next = featurize_block(q_rows, q_past, filters[0], F)
    dc = times(dy, q)
    dq = ()
    for j in tl.static_range(16):
        dq = dq + (dy[j] * (c[j] + direct * w[j]),)
    return q_rows, w, newest, dc, dq, q_next, k_past, v_past


@triton.jit(do_not_specialize=["L", "start", "before"])
def banded_down(
    z,
    z_past,
    w_past,
    featurizer,
    bias,
    inner_taps,
    skip,
    dy,
    dz,
    dz_past,
    partial,
    partial_taps,
    L,
    start,
    before,
    total,
    stride_b,
    stride: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    SKIP: tl.constexpr,
    CHANNELS: tl.constexpr,
    SEGMENT: tl.constexpr,
    CHECK: tl.constexpr,
    HINT: tl.constexpr,
):
    """The gradients of q and of the filter, for rows from `start` on; `before` programs of `total` had earlier rows.

    partial [B, total, segments, F + BIAS + 1, D] gets the sums of q's featurizer and of the skip,
    partial_taps [B, total, tiles, BLOCKS, 16, 16] those of the Toeplitz blocks' entries.
    """
    SEGMENTS: tl.constexpr = 32 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, 1)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b
    z_past += b * (F - 1) * 3 * D
    w_past += b * (K - 1) * D
    dy += b * L * D
    dz += b * L * 3 * D
    dz_past += b * (F - 1) * 3 * D
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, 1, False)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((32,), tl.float32)

    row = start + tl.program_id(1).to(tl.int64) * SEGMENTS * SEGMENT
    first = row + segment * SEGMENT
    past = gated_past(z, z_past, w_past, first, L, channel, mask, filters, unit, stride, D, F, K, 1)
    p = z + first * stride + channel
    p_dy = dy + first * D + channel
    out = dz + first * 3 * D + channel
    here = mask & (first < L)
    q_past = load_above(p, z_past + channel, first, here, stride, 3 * D, F)
    k_past = load_above(p + D, z_past + channel + D, first, here, stride, 3 * D, F)
    v_past = load_above(p + 2 * D, z_past + channel + 2 * D, first, here, stride, 3 * D, F)
    d_taps = ()
    for _ in tl.static_range(BLOCKS):
        d_taps = d_taps + (tl.zeros((16, 16), tl.float32),)
    d_q = zeros(F + BIAS, channel)
    d_skip = tl.zeros((32,), tl.float32)
    dq_above = zeros(F - 1, channel)
    count = tl.minimum((L - row + 15) // 16, SEGMENT // 16) if CHECK else SEGMENT // 16
    left = L - first
    for i in range(count):
        q_rows, w, newest, dc, dq, q_next, k_past, v_past = block_down(
            p, p_dy, q_past, k_past, v_past, left, past, filters, matrices, unit, direct, stride, D, F, BLOCKS, CHECK
        )
        narrow = ()
        for j in tl.static_range(16):
            d_skip += dc[j] * w[j]
            # columns that no channel fills must add nothing to their tile's products
            kept = dc[j] if D % (G * CHANNELS) == 0 else tl.where(mask, dc[j], 0.0)
            narrow = narrow + (kept.to(operand),)
        gradient = tl.trans(pack(narrow))
        sums = (tl.dot(gradient, newest, d_taps[0], input_precision="tf32x3"),)
        for d in tl.static_range(1, BLOCKS):
            sums = sums + (tl.dot(gradient, past[d - 1], d_taps[d], input_precision="tf32x3"),)
        d_taps = sums
        past = (newest,) + past[: BLOCKS - 2]
        d_q = correlate_block(d_q, dq, q_rows, q_past, F, BIAS)
        q_past = q_next
        for j in tl.static_range(16):
            value = reverse_fir(dq[j], dq_above, filters[0], F).to(operand)
            dq_above = push(dq[j], dq_above, F)
            if j < F - 1:  # these rows belong to the block above
                tl.store(out + (j - F + 1) * 3 * D, value, mask=mask & (left > j - F + 1) & (everywhere(i, channel) > 0))
                tl.store(
                    dz_past + channel + j * 3 * D,
                    value,
                    mask=mask & (first == 0) & (everywhere(i, channel) == 0),
                )
            elif CHECK:
                tl.store(out + (j - F + 1) * 3 * D, value, mask=mask & (left > j - F + 1))
            else:
                tl.store(out + (j - F + 1) * 3 * D, value, mask=mask)
        p += 16 * stride
        p_dy += 16 * D
        out += 16 * 3 * D
        left -= 16
    if F > 1:  # the last rows wait for the first gradients of the next segment
        _, _, _, _, dq, _, _, _ = block_down(
            p, p_dy, q_past, k_past, v_past, left, past, filters, matrices, unit, direct, stride, D, F, BLOCKS, True
        )
        for j in tl.static_range(F - 1):
            value = reverse_fir(dq[j], dq_above, filters[0], F).to(operand)
            dq_above = push(dq[j], dq_above, F)
            tl.store(out + (j - F + 1) * 3 * D, value, mask=mask & (left > j - F + 1))

    program = b * total + before + tl.program_id(1)
    tile = program * tl.num_programs(0) + tl.program_id(0)
    entry = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    for d in tl.static_range(BLOCKS):
        tl.store(partial_taps + (tile * BLOCKS + d) * 256 + entry, d_taps[d])
    partial += (program * SEGMENTS + segment) * (F + BIAS + 1) * D
    store_sums(partial, d_q + (d_skip,), channel, mask, D, F + BIAS + 1)


@triton.jit
def gradient_at_output(
    p, p_dy, past, left, filter, stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, CHECK: tl.constexpr
):
    """The gradient of the inner filter's output at 16 rows: dy times the post-gate."""
    q, _ = featurize_block(load_block(p, left, stride, CHECK), past, filter, F)
    return times(widen(load_block(p_dy, left, D, CHECK)), q)


@triton.jit
def block_up(
    p, p_dy, z_past, first, left, here, past, filters, matrices, unit, direct, dw_last, channel, mask, L,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, K: tl.constexpr, LAST: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """16 rows of the walk up: z's k and v with the rows above them, their gradients, and the operand of the output's."""
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    q_past = load_above(p, z_past + channel, first, here, stride, 3 * D, F)
    k_past = load_above(p + D, z_past + channel + D, first, here, stride, 3 * D, F)
    v_past = load_above(p + 2 * D, z_past + channel + 2 * D, first, here, stride, 3 * D, F)
    dc = gradient_at_output(p, p_dy, q_past, left, filters[0], stride, D, F, CHECK)
    k_rows = load_block(p + D, left, stride, CHECK)
    v_rows = load_block(p + 2 * D, left, stride, CHECK)
    newest = operand_of(dc, unit, 2)
    dw = convolve(newest, past, matrices, BLOCKS)
    k, _ = featurize_block(k_rows, k_past, filters[1], F)
    v, _ = featurize_block(v_rows, v_past, filters[2], F)
    dk = ()
    dv = ()
    for j in tl.static_range(16):
        whole = dw[j] + direct * dc[j]
        if LAST:
            kept = first + j - (L - (K - 1))
            whole += tl.load(
                dw_last + kept * D + channel, mask=mask & (kept >= 0) & (kept < K - 1) & (left > j), other=0.0
            )
        dk = dk + (whole * v[j],)
        dv = dv + (whole * k[j],)
    return k_rows, k_past, dk, v_rows, v_past, dv, newest


@triton.jit
def store_up(out, rows, below, filter, left, mask, D: tl.constexpr, F: tl.constexpr, CHECK: tl.constexpr):
    """Store dz of 16 rows of a third; `below` are the F-1 gradients after them, nearest first. Gives those of the rows."""
    for j in tl.static_range(15, -1, -1):
        value = rows[j] * filter[0]
        for i in tl.static_range(1, F):
            value += below[i - 1] * filter[i]
        value = value.to(out.dtype.element_ty)
        if CHECK:
            tl.store(out + j * 3 * D, value, mask=mask & (left > j))
        else:
            tl.store(out + j * 3 * D, value, mask=mask)
        below = push(rows[j], below, F)
    return below


@triton.jit
def store_past(dz_past, below, filter, mask, E: tl.constexpr, F: tl.constexpr):
    """Store the gradient of the featurizer's state: the rows above the sequence's first."""
    for above in tl.static_range(1, F):
        value = below[0] * filter[above]
        for i in tl.static_range(above + 1, F):
            value += below[i - above] * filter[i]
        tl.store(dz_past + (F - 1 - above) * E, value.to(dz_past.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["L", "start", "before"])
def banded_up(
    z,
    z_past,
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
    start,
    before,
    total,
    stride_b,
    stride: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    SKIP: tl.constexpr,
    LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    SEGMENT: tl.constexpr,
    CHECK: tl.constexpr,
    HINT: tl.constexpr,
):
    """The gradients of k and v for rows from `start` on; `before` programs of `total` had earlier rows.

    partial [B, total, segments, 2 (F + BIAS), D] gets the sums of their featurizers. LAST: dw_last [B, K-1, D] is the
    gradient of the outgoing state's gated inputs.
    """
    SEGMENTS: tl.constexpr = 16 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, 2)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b
    z_past += b * (F - 1) * 3 * D
    dy += b * L * D
    dz += b * L * 3 * D
    dz_past += b * (F - 1) * 3 * D
    dw_past += b * (K - 1) * D
    dw_last += b * (K - 1) * D
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, 2, True)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((32,), tl.float32)

    row = start + tl.program_id(1).to(tl.int64) * SEGMENTS * SEGMENT
    top = row + segment * SEGMENT
    count = tl.minimum((L - row + 15) // 16, SEGMENT // 16) if CHECK else SEGMENT // 16
    first = top + (count + BLOCKS - 1) * 16
    p = z + first * stride + channel
    p_dy = dy + first * D + channel
    past = no_past(unit, 2, BLOCKS)
    for _ in range(BLOCKS - 1):
        here = mask & (first < L)
        q_past = load_above(p, z_past + channel, first, here, stride, 3 * D, F)
        dc = gradient_at_output(p, p_dy, q_past, L - first, filters[0], stride, D, F, True)
        past = (operand_of(dc, unit, 2),) + past[: BLOCKS - 2]
        first -= 16
        p -= 16 * stride
        p_dy -= 16 * D

    # the first F-1 gradients of the next segment
    dk_below = zeros(F - 1, channel)
    dv_below = zeros(F - 1, channel)
    left = L - first
    _, _, dk, _, _, dv, newest = block_up(
        p, p_dy, z_past, first, left, mask & (left > 0), past, filters, matrices, unit, direct, dw_last, channel, mask, L,
        stride, D, F, K, LAST, True,
    )  # fmt: skip
    past = (newest,) + past[: BLOCKS - 2]
    for j in tl.static_range(F - 1):
        dk_below = push(dk[F - 2 - j], dk_below, F)
        dv_below = push(dv[F - 2 - j], dv_below, F)

    d_k = zeros(F + BIAS, channel)
    d_v = zeros(F + BIAS, channel)
    near = z + (row + (count - 1) * 16) * stride + tl.min(channel, axis=0)
    near_dy = dy + (row + (count - 1) * 16) * D + tl.min(channel, axis=0)
    for _ in range(count):
        first -= 16
        left += 16
        p -= 16 * stride
        p_dy -= 16 * D
        near -= 16 * stride
        near_dy -= 16 * D
        for third in tl.static_range(3):
            fetch(near + third * D, 15, stride, 16, HINT and SEGMENTS == 1)
        fetch(near_dy, 15, D, 16, HINT and SEGMENTS == 1)
        k_rows, k_past, dk, v_rows, v_past, dv, newest = block_up(
            p, p_dy, z_past, first, left, mask & (left > 0) if CHECK else mask, past, filters, matrices, unit, direct,
            dw_last, channel, mask, L, stride, D, F, K, LAST, CHECK,
        )  # fmt: skip
        past = (newest,) + past[: BLOCKS - 2]
        d_k = correlate_block(d_k, dk, k_rows, k_past, F, BIAS)
        d_v = correlate_block(d_v, dv, v_rows, v_past, F, BIAS)
        out = dz + first * 3 * D + channel + D
        dk_below = store_up(out, dk, dk_below, filters[1], left, mask, D, F, CHECK)
        dv_below = store_up(out + D, dv, dv_below, filters[2], left, mask, D, F, CHECK)

    if row == 0:
        at_start = mask & (top == 0)
        store_past(dz_past + channel + D, dk_below, filters[1], at_start, 3 * D, F)
        store_past(dz_past + channel + 2 * D, dv_below, filters[2], at_start, 3 * D, F)
        nothing = operand_of(zeros(16, channel), unit, 2)
        for i in range(BLOCKS - 1):
            dw = convolve(nothing, past, matrices, BLOCKS)
            past = (nothing,) + past[: BLOCKS - 2]
            for j in tl.static_range(16):
                kept = everywhere(K - 1 - 16 * (i + 1) + j, channel)
                tl.store(dw_past + kept * D + channel, dw[j], mask=at_start & (kept >= 0))

    program = b * total + before + tl.program_id(1)
    partial += (program * SEGMENTS + segment) * 2 * (F + BIAS) * D
    store_sums(partial, d_k + d_v, channel, mask, D, 2 * (F + BIAS))
