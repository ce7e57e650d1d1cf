"""How Hyena-MR's kernels lay sequences out for tensor cores.

A program of one warp owns 32 columns; a thread walks down one column, 16 rows at a time. A column is one channel in one
segment of the rows. Columns that share a filter form a tile: the product of its 16 rows and a 16 x 16 Toeplitz matrix
is the block's part of the convolution. Registers hold the operands of the blocks before, so nothing is read twice.
"""

# TILES tiles a program; a tile has CHANNELS channels (a power of two, at most 16) in SEGMENTS segments of its rows
# a tuple of n row tensors [32] is written n x [32]

import triton
import triton.language as tl


@triton.jit
def tile_group(tile, D: tl.constexpr, G: tl.constexpr, CHANNELS: tl.constexpr):
    """The group of a tile, and its first channel within the group."""
    a_group: tl.constexpr = (D // G + CHANNELS - 1) // CHANNELS
    return tile // a_group, (tile % a_group) * CHANNELS


@triton.jit
def columns(D: tl.constexpr, G: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr):
    """The channel and the segment of each column, and which exist; the others read a real one, and store nothing."""
    column = tl.arange(0, 32)
    slot = column % (32 // TILES)
    group, first = tile_group(tl.program_id(0) * TILES + column // (32 // TILES), D, G, CHANNELS)
    within = first + slot % CHANNELS
    mask = (within < D // G) & (group < G)
    return tl.minimum(group * (D // G) + within, D - 1), slot // CHANNELS, mask


@triton.jit
def toeplitz(
    taps,
    operand,
    D: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The filter as blocks of a banded Toeplitz matrix, one a distance d in blocks: entry (s, t) is tap 16 d + t - s.

    As many as reach K-1 inputs back: (K + 14) // 16 + 1. Transposed, entry (t, s), from taps stored last tap first:
    neighbours in a row must be neighbours in memory, or the compiler's layout makes every read conflict.
    """
    row = tl.arange(0, 16 * TILES)[:, None]
    column = tl.arange(0, 16)[None, :]
    group, _ = tile_group(tl.program_id(0) * TILES + row // 16, D, G, CHANNELS)
    group = tl.minimum(group, G - 1)
    out = ()
    for d in tl.static_range((K + 14) // 16 + 1):
        at = K - 1 - 16 * d - row % 16 + column if TRANSPOSED else 16 * d + column - row % 16
        matrix = tl.load(taps + group * K + at, mask=(at >= 0) & (at < K), other=0.0).to(operand)
        out = out + (batched(matrix, TILES),)
    return out


@triton.jit
def batched(x, TILES: tl.constexpr):
    """Rows of several tiles as a batch of matrices."""
    if TILES == 1:
        return x
    else:
        return tl.reshape(x, (TILES, x.shape[0] // TILES, 16))


@triton.jit
def identity(operand):
    """The 16 x 16 unit matrix."""
    return tl.where(tl.arange(0, 16)[:, None] == tl.arange(0, 16)[None, :], 1.0, 0.0).to(operand)


@triton.jit
def pack(rows):
    """16 x [32] as one tensor [32, 16]."""
    a = tl.join(tl.join(rows[0], rows[8]), tl.join(rows[4], rows[12]))
    b = tl.join(tl.join(rows[1], rows[9]), tl.join(rows[5], rows[13]))
    c = tl.join(tl.join(rows[2], rows[10]), tl.join(rows[6], rows[14]))
    d = tl.join(tl.join(rows[3], rows[11]), tl.join(rows[7], rows[15]))
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (32, 16))


@triton.jit
def unpack(tensor):
    """[32, 16] as 16 x [32]."""
    even, odd = tl.split(tl.reshape(tensor, (32, 2, 2, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    a0, a4 = tl.split(a)
    b0, b4 = tl.split(b)
    c0, c4 = tl.split(c)
    d0, d4 = tl.split(d)
    r0, r8 = tl.split(a0)
    r4, r12 = tl.split(a4)
    r1, r9 = tl.split(b0)
    r5, r13 = tl.split(b4)
    r2, r10 = tl.split(c0)
    r6, r14 = tl.split(c4)
    r3, r11 = tl.split(d0)
    r7, r15 = tl.split(d4)
    return (r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15)


@triton.jit
def multiply(a, b):
    """A product with float32 sums; float32 operands lose nothing that matters to three TF32 products."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def operand_of(rows, unit, TILES: tl.constexpr):
    """16 x [32] as the left operand of products: the unit matrix brings them into the layout that products keep."""
    narrow = ()
    for j in tl.static_range(16):
        narrow = narrow + (rows[j].to(unit.dtype),)
    return batched(multiply(pack(narrow), unit).to(unit.dtype), TILES)


@triton.jit
def convolve(newest, past, matrices, BLOCKS: tl.constexpr):
    """A block of outputs, from its own inputs and the BLOCKS-1 blocks before (or, transposed, behind)."""
    out = multiply(newest, matrices[0])
    for d in tl.static_range(1, BLOCKS):
        out = tl.dot(past[d - 1], matrices[d], out, input_precision="tf32x3")
    return unpack(tl.reshape(out, (32, 16)))


@triton.jit
def no_past(unit, TILES: tl.constexpr, BLOCKS: tl.constexpr):
    """BLOCKS-1 blocks of zeros."""
    out = ()
    for _ in tl.static_range(BLOCKS - 1):
        out = out + (batched(tl.zeros((32, 16), unit.dtype), TILES),)
    return out


@triton.jit
def load_block(base, row, L, stride: tl.constexpr, CHECK: tl.constexpr):
    """16 rows from row `row` of every column: 16 x [32].

    Without CHECK a block is wholly inside the sequence or wholly outside; outside, the nearest rows are read instead.
    With it, rows outside are zeros.
    """
    rows = ()
    if CHECK:
        for j in tl.static_range(16):
            inside = (row + j >= 0) & (row + j < L)
            rows = rows + (tl.load(base + (row + j) * stride, mask=inside, other=0.0),)
    else:
        p = base + tl.minimum(tl.maximum(row, 0), L - 16) * stride
        for j in tl.static_range(16):
            rows = rows + (tl.load(p + j * stride),)
    return rows


@triton.jit
def load_above(base, past, row, L, stride: tl.constexpr, E: tl.constexpr, F: tl.constexpr):
    """The F-1 rows above row `row`, newest first, as float32; above the sequence's first row lies the state."""
    rows = ()
    for j in tl.static_range(1, F):
        t = row - j
        kept = past + tl.maximum(t + F - 1, 0) * E
        rows = rows + (tl.load(tl.where(t < 0, kept, base + tl.minimum(t, L - 1) * stride)).to(tl.float32),)
    return rows


@triton.jit
def load_gradient(dy, nothing, row, L, D: tl.constexpr, CHECK: tl.constexpr):
    """16 rows of the output's gradient; outside the sequence `nothing` [16, D] is read, which is zeros."""
    rows = ()
    if CHECK:
        rows = load_block(dy, row, L, D, True)
    else:
        p = tl.where((row >= 0) & (row < L), dy + row * D, nothing)
        for j in tl.static_range(16):
            rows = rows + (tl.load(p + j * D),)
    return rows


@triton.jit
def load_kept(base, row, L, channel, mask, D: tl.constexpr, K: tl.constexpr):
    """16 rows from row `row` of a state's [K-1, D] gated inputs, zeros where it has none: 16 x [32].

    The state's last row is row L-1: 0 for L counts the rows above a sequence, its length those at its end.
    """
    kept = (row - L + K - 1)[:, None] + tl.arange(0, 16)[None, :]
    there = mask[:, None] & (kept >= 0) & (kept < K - 1)
    return unpack(tl.load(base + kept * D + channel[:, None], mask=there, other=0.0))


@triton.jit
def store_kept(base, rows, row, L, channel, mask, D: tl.constexpr, K: tl.constexpr):
    """Store 16 rows from row `row` on into a state's [K-1, D] gated inputs, where it has them."""
    kept = (row - L + K - 1)[:, None] + tl.arange(0, 16)[None, :]
    there = mask[:, None] & (kept >= 0) & (kept < K - 1)
    tl.store(base + kept * D + channel[:, None], pack(rows), mask=there)


@triton.jit
def place_rows(L, SEGMENTS: tl.constexpr, rows):
    """The first row of a program and the blocks of each of its segments: `rows` in all, fewer at the end."""
    row = tl.program_id(1).to(tl.int64) * rows
    return row, (tl.minimum(rows, L - row) + 16 * SEGMENTS - 1) // (16 * SEGMENTS)


@triton.jit
def fetch(near, row, L, stride: tl.constexpr):
    """Ask the L2 cache for rows that are read a little later, one row a lane."""
    at = tl.minimum(tl.maximum(row, 0), L - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [(near + at * stride).to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
