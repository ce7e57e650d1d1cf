"""Hyena-MR backward, in two walks, both recomputing gates and featurizer.

The walk down computes the outputs of the inner filter again: from them come the gradient of the post-gate q and, as
products of the output's gradient and the inputs, that of the filter. The walk up is the transposed filter: from it come
the gradients of the pre-gate k and of v.
"""

# D width, F featurizer taps, K inner taps; the layout of columns, segments and tiles is told in tiles.py

import triton
import triton.language as tl

from kernels.hyena_fir.banded_forward import featurize_block, gate, read_above, times
from kernels.hyena_fir.direct_backward import correlate, reverse_fir
from kernels.hyena_fir.tiles import (
    columns,
    convolve,
    identity,
    interleaved,
    load_above,
    load_first,
    load_kept,
    load_tile,
    multiply,
    no_blocks,
    numbers,
    operand_of,
    place_rows,
    place_tile,
    shift,
    store_kept,
    tile_of,
    toeplitz,
    turned,
    unpack,
)
from kernels.rows import load_filters, push, zeros


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
def transpose_rows(rows, above, filter, F: tl.constexpr):
    """The transposed featurizer at the 16 rows from F-1 above the first on; `above` are the F-1 gradients above it."""
    out = ()
    for j in tl.static_range(16):
        out = out + (reverse_fir(rows[j], above, filter, F),)
        above = push(rows[j], above, F)
    return out, above


@triton.jit(do_not_specialize=["L", "rows"])
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
):
    """The gradients of q and of the filter.

    partial [B, programs, segments, F + BIAS, D] gets the sums of q's featurizer,
    partial_taps [B, programs, tiles, BLOCKS, 16, 16] those of the Toeplitz blocks' entries.
    """
    SEGMENTS: tl.constexpr = 32 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, 1, 32)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b + channel
    z_past += b * (F - 1) * 3 * D + channel
    w_past += b * (K - 1) * D
    dy += b * L * D + channel
    dz += b * L * 3 * D + channel
    dz_past += b * (F - 1) * 3 * D + channel
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, 1, False)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((32,), tl.float32)

    start, count = place_rows(L, SEGMENTS, rows)
    first = start + segment * count * 16
    end = tl.minimum(first + count * 16, L)
    row = first
    q_past = load_above(z, z_past, first, L, stride, 3 * D, F)
    blocks, k_past, v_past = read_above(
        z, z_past, w_past, first, start, L, channel, mask, filters, unit, stride, D, F, K, BLOCKS
    )
    d_taps = ()
    for _ in tl.static_range(BLOCKS):
        d_taps = d_taps + (tl.zeros((16, 16), tl.float32),)
    d_q = zeros(F + BIAS, channel)
    dq_above = zeros(F - 1, channel)
    # one block more than the segment's: its last rows wait for the first gradients below them
    for i in tl.range(count + 1, num_stages=3):
        q_tile = load_tile(z, row, L, stride)
        k_tile = load_tile(z + D, row, L, stride)
        v_tile = load_tile(z + 2 * D, row, L, stride)
        dy_tile = load_tile(dy, row, L, D)
        w, k_past, v_past = gate(k_tile, v_tile, k_past, v_past, filters, F)
        blocks = shift(operand_of(w, unit), blocks, BLOCKS)
        c = convolve(blocks, matrices, 1, BLOCKS)
        q_rows = unpack(q_tile)
        q, q_next = featurize_block(q_rows, q_past, filters[0], F)
        dy_rows = unpack(dy_tile)
        counted = (i < count).to(tl.float32)  # the block below is another program's to count
        dq = ()
        dc = ()
        for j in tl.static_range(16):
            dy_row = dy_rows[j].to(tl.float32)
            dq = dq + (dy_row * (c[j] + direct * w[j] if SKIP else c[j]),)
            value = dy_row * (q[j] * counted)
            # columns that no channel fills must add nothing to their tile's products
            dc = dc + (value if D % (G * CHANNELS) == 0 else tl.where(mask, value, 0.0),)
        # the unit matrix again: one product spares moving the operand for each of the next
        gradient = interleaved(multiply(unit, tl.trans(tile_of(dc, operand))).to(operand))
        more_taps = ()
        for d in tl.static_range(BLOCKS):
            more_taps = more_taps + (tl.dot(gradient, turned(blocks[d], operand), d_taps[d], input_precision="tf32x3"),)
        d_taps = more_taps
        block_q = correlate_block(zeros(F + BIAS, channel), dq, q_rows, q_past, F, BIAS)
        more_q = ()
        for j in tl.static_range(F + BIAS):
            more_q = more_q + (d_q[j] + counted * block_q[j],)
        d_q = more_q
        q_past = q_next
        dz_rows, dq_above = transpose_rows(dq, dq_above, filters[0], F)
        t = numbers(row - (F - 1))
        # rows above the sequence's first are the state's, and the first segment's to store
        own = (t >= tl.where(first == 0, 1 - F, first)[:, None]) & (t < end[:, None]) & mask[:, None]
        tl.store(place_tile(dz, dz_past, row - (F - 1), 3 * D, 3 * D, F), tile_of(dz_rows, operand), mask=own)
        row += 16

    program = b * tl.num_programs(1) + tl.program_id(1)
    tile = program * tl.num_programs(0) + tl.program_id(0)
    entry = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    for d in tl.static_range(BLOCKS):
        tl.store(partial_taps + (tile * BLOCKS + d) * 256 + entry, d_taps[d])
    partial += (program * SEGMENTS + segment) * (F + BIAS) * D
    store_sums(partial, d_q, channel, mask, D, F + BIAS)


@triton.jit(do_not_specialize=["programs"])
def sum_taps(partial_taps, dtaps, programs, K: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr):
    """Sum the gradients of a group's Toeplitz blocks over programs, tiles and diagonals: 16 taps of dtaps [G, K]."""
    group, d = tl.program_id(0), tl.program_id(1)
    tap = tl.arange(0, 16)[:, None]
    t = tl.arange(0, 16)[None, :]
    # entry (t, s) of the block at distance d belongs to tap 16 d + t - s
    block = d + (t < tap).to(tl.int32)
    entry = block * 256 + t * 16 + (t - tap + 16) % 16
    total = tl.zeros((16, 16), tl.float32)
    for program in range(programs):
        for tile in range(TILES):
            first = (program * tl.num_programs(0) + group).to(tl.int64) * TILES + tile
            total += tl.load(partial_taps + first * BLOCKS * 256 + entry, mask=block < BLOCKS, other=0.0)
    k = d * 16 + tl.arange(0, 16)
    tl.store(dtaps + group * K + k, tl.sum(total, axis=1), mask=k < K)


@triton.jit
def aligned(tile, below, F: tl.constexpr):
    """The 16 rows of a block and the F-1 above it, newest first, from a tile that begins with the latter.

    `below` are the block's last F-1 rows, newest first, that such a tile lacks.
    """
    rows = widen(unpack(tile))
    for j in tl.static_range(1, F):
        rows = rows + (below[F - 1 - j],)
    above = ()
    for j in tl.static_range(1, F):
        above = above + (rows[F - 1 - j],)
    return rows[F - 1 :], above


@triton.jit
def transpose_up(rows, below, filter, F: tl.constexpr):
    """The transposed featurizer at 16 rows; `below` are the F-1 gradients after them, nearest first."""
    out = ()
    for j in tl.static_range(15, -1, -1):
        value = rows[j] * filter[0]
        for i in tl.static_range(1, F):
            value += below[i - 1] * filter[i]
        out = (value,) + out
        below = push(rows[j], below, F)
    return out


@triton.jit
def store_past(dz_past, below, filter, mask, E: tl.constexpr, F: tl.constexpr):
    """Store the gradient of the featurizer's state: the rows above the sequence's first."""
    for above in tl.static_range(1, F):
        value = below[0] * filter[above]
        for i in tl.static_range(above + 1, F):
            value += below[i - above] * filter[i]
        tl.store(dz_past + (F - 1 - above) * E, value.to(dz_past.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["L", "rows"])
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
    CHANNELS: tl.constexpr,
):
    """The gradients of k and v.

    partial [B, programs, segments, 2 (F + BIAS) + 1, D] gets the sums of their featurizers and of the skip. LAST:
    dw_last [B, K-1, D] is the gradient of the outgoing state's gated inputs. inner_taps are stored last tap first.
    """
    SEGMENTS: tl.constexpr = 16 // CHANNELS
    BLOCKS: tl.constexpr = (K + 14) // 16 + 1
    operand: tl.constexpr = z.dtype.element_ty
    channel, segment, mask = columns(D, G, CHANNELS, 2, 32)
    b = tl.program_id(2).to(tl.int64)
    z += b * stride_b + channel
    z_past += b * (F - 1) * 3 * D + channel
    dy += b * L * D + channel
    dz += b * L * 3 * D + channel
    dz_past += b * (F - 1) * 3 * D + channel
    dw_past += b * (K - 1) * D
    if LAST:
        dw_last += b * (K - 1) * D
    filters = load_filters(featurizer, bias, channel, mask, D, F, BIAS)
    matrices = toeplitz(inner_taps, operand, D, G, K, CHANNELS, 2, True)
    unit = identity(operand)
    direct = tl.load(skip + channel, mask=mask, other=0.0) if SKIP else tl.zeros((32,), tl.float32)

    start, count = place_rows(L, SEGMENTS, rows)
    first = start + segment * count * 16
    end = tl.minimum(first + count * 16, L)
    row = first + (count + BLOCKS - 1) * 16
    blocks = no_blocks(operand, 32, BLOCKS)
    dk_below = zeros(F - 1, channel)
    dv_below = zeros(F - 1, channel)
    d_k = zeros(F + BIAS, channel)
    d_v = zeros(F + BIAS, channel)
    d_skip = tl.zeros((32,), tl.float32)
    # tiles begin with the F-1 rows above their block, which the featurizer reads; its last F-1 rows came before
    q_below = load_above(z, z_past, row + 16, L, stride, 3 * D, F)
    # the outputs beyond the segment that its inputs reach
    for _ in tl.range(BLOCKS - 1, num_stages=2):
        dy_tile = load_tile(dy, row, L, D)
        q_tile = load_tile(z, row - (F - 1), L, stride)
        q_rows, q_below = aligned(q_tile, q_below, F)
        dc = times(widen(unpack(dy_tile)), featurize_block(q_rows, q_below, filters[0], F)[0])
        blocks = shift(operand_of(dc, unit), blocks, BLOCKS)
        row -= 16
    k_below = load_above(z + D, z_past + D, row + 16, L, stride, 3 * D, F)
    v_below = load_above(z + 2 * D, z_past + 2 * D, row + 16, L, stride, 3 * D, F)
    # one block beyond the segment's, whose first gradients the last rows need
    for back in tl.range(count + 1, num_stages=2):
        q_tile = load_first(z, z_past, row - (F - 1), L, stride, 3 * D, F)
        k_tile = load_first(z + D, z_past + D, row - (F - 1), L, stride, 3 * D, F)
        v_tile = load_first(z + 2 * D, z_past + 2 * D, row - (F - 1), L, stride, 3 * D, F)
        dy_tile = load_tile(dy, row, L, D)
        q_rows, q_below = aligned(q_tile, q_below, F)
        dc = times(widen(unpack(dy_tile)), featurize_block(q_rows, q_below, filters[0], F)[0])
        blocks = shift(operand_of(dc, unit), blocks, BLOCKS)
        dw = convolve(blocks, matrices, 2, BLOCKS)
        whole = ()
        for j in tl.static_range(16):
            whole = whole + (dw[j] + direct * dc[j] if SKIP else dw[j],)
        if LAST:
            kept = load_kept(dw_last, row, L, channel, mask & (row < L), D, K)
            more = ()
            for j in tl.static_range(16):
                more = more + (whole[j] + kept[j],)
            whole = more
        k_rows, k_below = aligned(k_tile, k_below, F)
        v_rows, v_below = aligned(v_tile, v_below, F)
        k = featurize_block(k_rows, k_below, filters[1], F)[0]
        v = featurize_block(v_rows, v_below, filters[2], F)[0]
        dk = times(whole, v)
        dv = times(whole, k)
        if back > 0:
            t = numbers(row)
            out, own = dz[:, None] + t.to(tl.int64) * (3 * D), mask[:, None] & (t < end[:, None])
            tl.store(out + D, tile_of(transpose_up(dk, dk_below, filters[1], F), operand), mask=own)
            tl.store(out + 2 * D, tile_of(transpose_up(dv, dv_below, filters[2], F), operand), mask=own)
            d_k = correlate_block(d_k, dk, k_rows, k_below, F, BIAS)
            d_v = correlate_block(d_v, dv, v_rows, v_below, F, BIAS)
            if SKIP:
                for j in tl.static_range(16):
                    d_skip += dc[j] * (k[j] * v[j])
        dk_below = dk[: F - 1]
        dv_below = dv[: F - 1]
        row -= 16
    if start == 0:
        store_past(dz_past + D, dk_below, filters[1], mask & (first == 0), 3 * D, F)
        store_past(dz_past + 2 * D, dv_below, filters[2], mask & (first == 0), 3 * D, F)
        # above the sequence, the state's rows
        for _ in range(BLOCKS - 1):
            blocks = shift(no_blocks(operand, 32, 1)[0], blocks, BLOCKS)
            dw = convolve(blocks, matrices, 2, BLOCKS)
            store_kept(dw_past, dw, row, 0, channel, mask & (first == 0), D, K)
            row -= 16

    program = b * tl.num_programs(1) + tl.program_id(1)
    partial += (program * SEGMENTS + segment) * (2 * (F + BIAS) + 1) * D
    store_sums(partial, d_k + d_v + (d_skip,), channel, mask, D, 2 * (F + BIAS) + 1)
