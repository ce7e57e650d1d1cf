"""Hyena-MR forward: up to hundreds of taps, as products with a banded Toeplitz matrix, 16 rows at a time."""

# D width, F featurizer taps, K inner taps; the layout of columns, segments and tiles is told in tiles.py

import triton
import triton.language as tl

from kernels.hyena_fir.tiles import (
    columns,
    convolve,
    identity,
    load_above,
    load_first,
    load_kept,
    load_tile,
    no_blocks,
    numbers,
    operand_of,
    place_rows,
    shift,
    store_kept,
    tile_of,
    toeplitz,
    unpack,
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
def gate(k_tile, v_tile, k_past, v_past, filters, F: tl.constexpr):
    """16 gated inputs, and k's and v's rows before the next block."""
    k, k_past = featurize_block(unpack(k_tile), k_past, filters[1], F)
    v, v_past = featurize_block(unpack(v_tile), v_past, filters[2], F)
    return times(k, v), k_past, v_past


@triton.jit
def with_state(w, w_past, row, channel, mask, D: tl.constexpr, K: tl.constexpr):
    """Gated inputs from row `row` on; above the sequence those of the state."""
    kept = load_kept(w_past, row, 0, channel, mask, D, K)
    out = ()
    for j in tl.static_range(16):
        out = out + (tl.where(row + j < 0, kept[j], w[j]),)
    return out


@triton.jit
def read_above(
    z, z_past, w_past, first, start, L, channel, mask, filters, unit,
    stride: tl.constexpr, D: tl.constexpr, F: tl.constexpr, K: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The operands of the BLOCKS-1 blocks of gated inputs above row `first`, and the last rows of k and v above it."""
    blocks = no_blocks(unit.dtype, channel.shape[0], BLOCKS)
    row = first - 16 * (BLOCKS - 1)
    k_past = load_above(z + D, z_past + D, row, L, stride, 3 * D, F)
    v_past = load_above(z + 2 * D, z_past + 2 * D, row, L, stride, 3 * D, F)
    # the compiler starts loads two rounds before their use
    for _ in tl.range(BLOCKS - 1, num_stages=3):
        k_tile = load_first(z + D, z_past + D, row, L, stride, 3 * D, F)
        v_tile = load_first(z + 2 * D, z_past + 2 * D, row, L, stride, 3 * D, F)
        w, k_past, v_past = gate(k_tile, v_tile, k_past, v_past, filters, F)
        if start == 0:
            w = with_state(w, w_past, row, channel, mask, D, K)
        blocks = shift(operand_of(w, unit), blocks, BLOCKS)
        row += 16
    return blocks, k_past, v_past


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
    N: tl.constexpr,
):
    """Rows [rows i, rows (i+1)) of N columns; w_last [B, K-1, D] gets the last gated inputs."""
    TILES: tl.constexpr = N // 16
    SEGMENTS: tl.constexpr = 16 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, TILES, N)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b + channel
    z_past += b * (F - 1) * 3 * D + channel
    w_past += b * (K - 1) * D
    w_last += b * (K - 1) * D
    y += b * L * D + channel
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, TILES, False)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((N,), tl.float32)

    start, count = place_rows(L, SEGMENTS, rows)
    first = start + segment * count * 16
    row = first
    q_past = load_above(z, z_past, first, L, stride, 3 * D, F)
    blocks, k_past, v_past = read_above(
        z, z_past, w_past, first, start, L, channel, mask, filters, unit, stride, D, F, K, BLOCKS
    )
    for i in tl.range(count, num_stages=3):
        q_tile = load_tile(z, row, L, stride)
        k_tile = load_tile(z + D, row, L, stride)
        v_tile = load_tile(z + 2 * D, row, L, stride)
        w, k_past, v_past = gate(k_tile, v_tile, k_past, v_past, filters, F)
        blocks = shift(operand_of(w, unit), blocks, BLOCKS)
        c = convolve(blocks, matrices, TILES, BLOCKS)
        q, q_past = featurize_block(unpack(q_tile), q_past, filters[0], F)
        out = ()
        for j in tl.static_range(16):
            out = out + (q[j] * (c[j] + direct * w[j]),)
        t = numbers(row)
        tl.store(y[:, None] + t.to(tl.int64) * D, tile_of(out, operand), mask=mask[:, None] & (t < L))
        if start + (SEGMENTS - 1) * count * 16 + 16 * (i + 1) > L - (K - 1):
            store_kept(w_last, w, row, L, channel, mask & (row < L), D, K)
        row += 16
