"""Hyena-MR forward: up to hundreds of taps, as products with a banded Toeplitz matrix, 16 rows at a time."""

# D width, F featurizer taps, K inner taps; the layout of columns, segments and tiles is told in tiles.py

import triton
import triton.language as tl

from kernels.hyena_fir.tiles import (
    columns,
    convolve,
    fetch,
    identity,
    load_above,
    load_block,
    load_kept,
    no_past,
    operand_of,
    place_rows,
    store_kept,
    toeplitz,
)
from kernels.rows import feature, load_filters, push


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
def choose(condition, a, b):
    """Rows of `a` in the columns where the condition holds, of `b` elsewhere."""
    out = ()
    for j in tl.static_range(len(a)):
        out = out + (tl.where(condition, a[j], b[j]),)
    return out


@triton.jit
def gate(
    z, k_rows, v_rows, k_past, v_past, z_past, w_past, row, above, L, channel, mask, filters,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """16 gated inputs from row `row` on, and k's and v's rows before the next block.

    above: rows of this block may lie above the sequence, where the state is.
    """
    k, k_past = featurize_block(k_rows, k_past, filters[1], F)
    v, v_past = featurize_block(v_rows, v_past, filters[2], F)
    w = times(k, v)
    if above:
        kept = load_kept(w_past, row, 0, channel, mask, D, K)
        own = ()
        for j in tl.static_range(16):
            own = own + (tl.where(row + j < 0, kept[j], w[j]),)
        w = own
        k_past = choose(row <= -16, load_above(z + D, z_past + D, row + 16, L, stride, 3 * D, F), k_past)
        v_past = choose(row <= -16, load_above(z + 2 * D, z_past + 2 * D, row + 16, L, stride, 3 * D, F), v_past)
    return w, k_past, v_past


@triton.jit(do_not_specialize=["L", "rows"])
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
    rows,
    stride_b,
    stride: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    SKIP: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHECK: tl.constexpr,
    HINT: tl.constexpr,
):
    """Rows [rows i, rows (i+1)) of 32 columns; w_last [B, K-1, D] gets the last gated inputs.

    CHECK: a block may lie across the sequence's start or end.
    """
    TILES: tl.constexpr = 2
    SEGMENTS: tl.constexpr = 16 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, TILES)
    b = tl.program_id(2).to(tl.int64)
    near = z + b * stride_b + tl.min(channel, axis=0)
    z += b * stride_b + channel
    z_past += b * (F - 1) * 3 * D + channel
    w_past += b * (K - 1) * D
    w_last += b * (K - 1) * D
    y += b * L * D + channel
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, TILES, False)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((32,), tl.float32)

    start, count = place_rows(L, SEGMENTS, rows)
    first = start + segment * count * 16
    row = first - 16 * (BLOCKS - 1)
    past = no_past(unit, TILES, BLOCKS)
    q_past = load_above(z, z_past, first, L, stride, 3 * D, F)
    k_past = load_above(z + D, z_past + D, row, L, stride, 3 * D, F)
    v_past = load_above(z + 2 * D, z_past + 2 * D, row, L, stride, 3 * D, F)
    q_rows = load_block(z, first, L, stride, CHECK)
    k_rows = load_block(z + D, row, L, stride, CHECK)
    v_rows = load_block(z + 2 * D, row, L, stride, CHECK)
    for i in range(1 - BLOCKS, count):
        if HINT:
            lane = tl.arange(0, 16 * SEGMENTS)
            at = start + lane // 16 * (count * 16) + 16 * i + 32 + lane % 16
            for third in tl.static_range(3):
                fetch(near + third * D, at, L, stride)
        above = (start == 0) & (i < 0)
        w, k_past, v_past = gate(
            z, k_rows, v_rows, k_past, v_past, z_past, w_past, row, above, L, channel, mask, filters, stride, D, F, K
        )
        # the next rows travel while these are computed
        k_rows = load_block(z + D, row + 16, L, stride, CHECK)
        v_rows = load_block(z + 2 * D, row + 16, L, stride, CHECK)
        newest = operand_of(w, unit, TILES)
        if i >= 0:
            c = convolve(newest, past, matrices, BLOCKS)
            q, q_past = featurize_block(q_rows, q_past, filters[0], F)
            for j in tl.static_range(16):
                y_row = (q[j] * (c[j] + direct * w[j])).to(operand)
                inside = mask & (row + j < L) if CHECK else mask
                tl.store(y + (row + j) * D, y_row, mask=inside)
            if start + (SEGMENTS - 1) * count * 16 + 16 * (i + 1) > L - (K - 1):
                store_kept(w_last, w, row, L, channel, mask & (row < L), D, K)
        q_rows = load_block(z, tl.maximum(row + 16, first), L, stride, CHECK)
        past = (newest,) + past[: BLOCKS - 2]
        row += 16
