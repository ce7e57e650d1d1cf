"""Hyena-MR forward: up to hundreds of taps, as products with a banded Toeplitz matrix, 16 rows at a time."""

# D width, F featurizer taps, K inner taps; the layout of columns, segments and tiles is told in tiles.py

import triton
import triton.language as tl

from kernels.hyena_fir.direct_forward import everywhere, feature, load_filters
from kernels.hyena_fir.tiles import (
    columns,
    convolve,
    fetch,
    identity,
    load_above,
    load_block,
    no_past,
    operand_of,
    toeplitz,
)
from kernels.rows import push


@triton.jit
def featurize_block(rows, past, filter, F: tl.constexpr):
    """The featurizer of 16 rows of a third, and the rows before the next block."""
    out = ()
    for j in tl.static_range(16):
        row = rows[j].to(tl.float32)
        out = out + (feature(row, past, filter, F),)
        past = push(row, past, F)
    return out, past


@triton.jit
def times(a, b):
    """The products of two blocks' rows."""
    out = ()
    for j in tl.static_range(16):
        out = out + (a[j] * b[j],)
    return out


@triton.jit
def gated_past(
    z,
    z_past,
    w_past,
    first,
    L,
    channel,
    mask,
    filters,
    unit,
    stride: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
):
    """The gated inputs of the blocks before row `first`: computed, or the state above the sequence's first row."""
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    past = no_past(unit, TILES, BLOCKS)
    row = first - 16 * (BLOCKS - 1)
    left = tl.where((first == 0) | (first >= L), 0, 16)
    p = z + row * stride + channel
    k_past = load_above(p + D, z_past + channel + D, row, mask & (left > 0), stride, 3 * D, F)
    v_past = load_above(p + 2 * D, z_past + channel + 2 * D, row, mask & (left > 0), stride, 3 * D, F)
    for i in range(BLOCKS - 1):
        k, k_past = featurize_block(load_block(p + D, left, stride, True), k_past, filters[1], F)
        v, v_past = featurize_block(load_block(p + 2 * D, left, stride, True), v_past, filters[2], F)
        w = ()
        for j in tl.static_range(16):
            kept = everywhere(K - 1 - 16 * (BLOCKS - 1) + 16 * i + j, channel)
            state = tl.load(w_past + kept * D + channel, mask=mask & (first == 0) & (kept >= 0), other=0.0)
            w = w + (tl.where(first == 0, state, k[j] * v[j]),)
        past = (operand_of(w, unit, TILES),) + past[: BLOCKS - 2]
        p += 16 * stride
    return past


@triton.jit
def store_last(w_last, w, row, channel, mask, L, D: tl.constexpr, K: tl.constexpr):
    """Store what of 16 gated inputs from row `row` on is among the sequence's last K-1."""
    for j in tl.static_range(16):
        kept = row + j - (L - (K - 1))
        tl.store(w_last + kept * D + channel, w[j], mask=mask & (kept >= 0) & (kept < K - 1))


@triton.jit(do_not_specialize=["L", "start"])
def banded_forward(
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
    start,
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
    """Rows from `start` on, in programs of 16 // CHANNELS segments; CHECK: the sequence may end within them.

    w_last [B, K-1, D] gets the last gated inputs.
    """
    TILES: tl.constexpr = 2
    SEGMENTS: tl.constexpr = 16 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, TILES)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b
    z_past += b * (F - 1) * 3 * D
    w_past += b * (K - 1) * D
    y += b * L * D
    w_last += b * (K - 1) * D
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, TILES, False)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((32,), tl.float32)

    row = start + tl.program_id(1).to(tl.int64) * SEGMENTS * SEGMENT
    first = row + segment * SEGMENT
    past = gated_past(z, z_past, w_past, first, L, channel, mask, filters, unit, stride, D, F, K, TILES)
    p = z + first * stride + channel
    out = y + first * D + channel
    here = mask & (first < L)
    q_past = load_above(p, z_past + channel, first, here, stride, 3 * D, F)
    k_past = load_above(p + D, z_past + channel + D, first, here, stride, 3 * D, F)
    v_past = load_above(p + 2 * D, z_past + channel + 2 * D, first, here, stride, 3 * D, F)
    count = tl.minimum((L - row + 15) // 16, SEGMENT // 16) if CHECK else SEGMENT // 16
    near = z + row * stride + tl.min(channel, axis=0)
    left = L - first
    q_rows = load_block(p, left, stride, CHECK)
    k_rows = load_block(p + D, left, stride, CHECK)
    v_rows = load_block(p + 2 * D, left, stride, CHECK)
    for i in range(count):
        # the next rows travel while these are computed; after the last, the same rows again rather than none
        p += (i + 1 < count).to(tl.int64) * 16 * stride
        ahead = 16 * i + 32
        fetch(near + ahead * stride, L - 1 - row - ahead, stride, 16, HINT and SEGMENTS == 1)
        fetch(near + ahead * stride + D, L - 1 - row - ahead, stride, 16, HINT and SEGMENTS == 1)
        fetch(near + ahead * stride + 2 * D, L - 1 - row - ahead, stride, 16, HINT and SEGMENTS == 1)
        k, k_past = featurize_block(k_rows, k_past, filters[1], F)
        v, v_past = featurize_block(v_rows, v_past, filters[2], F)
        k_rows = load_block(p + D, left - 16, stride, CHECK)
        v_rows = load_block(p + 2 * D, left - 16, stride, CHECK)
        w = times(k, v)
        newest = operand_of(w, unit, TILES)
        c = convolve(newest, past, matrices, BLOCKS)
        past = (newest,) + past[: BLOCKS - 2]
        q, q_past = featurize_block(q_rows, q_past, filters[0], F)
        for j in tl.static_range(16):
            y_row = (q[j] * (c[j] + direct * w[j])).to(operand)
            if CHECK:
                tl.store(out + j * D, y_row, mask=mask & (left > j))
            else:
                tl.store(out + j * D, y_row, mask=mask)
        if row + (SEGMENTS - 1) * SEGMENT + 16 * i + 16 > L - (K - 1):
            store_last(w_last, w, first + 16 * i, channel, mask, L, D, K)
        q_rows = load_block(p, left - 16, stride, CHECK)
        left -= 16
        out += 16 * D
