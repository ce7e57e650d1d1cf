"""How Hyena-MR's kernels lay sequences out for tensor cores.

A program owns 32 columns a warp; a thread walks down one column, 16 rows at a time. A column is one channel in one
segment of the rows. Columns that share a filter form a tile: the product of its 16 rows and a 16 x 16 Toeplitz matrix
is the block's part of the convolution. Registers hold the operands of the blocks before, so nothing is read twice.
"""

# N columns and TILES tiles a program; a tile has CHANNELS channels (a power of two) in SEGMENTS segments of its rows
# a tuple of n row tensors [N] is written n x [N]

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.constexpr_function
def tile_channels(D, G):
    """The channels of a tile, at most 16: those of a group, and one more where groups are odd.

    Two numbers of 16 bits are the least that the hardware copies by itself, so tiles begin at even channels.
    """
    size = D // G + odd_groups(D, G)
    return min(16, 1 << (size - 1).bit_length())


@triton.constexpr_function
def odd_groups(D, G):
    """1 where groups have an odd number of channels, but more than one, and D is even; otherwise 0."""
    return int(D // G % 2 == 1 and D // G > 1 and D % 2 == 0)


@triton.constexpr_function
def group_tiles(D, G):
    """The tiles that cover a group."""
    return -(-(D // G + odd_groups(D, G)) // tile_channels(D, G))


@triton.jit
def columns(D: tl.constexpr, G: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr, N: tl.constexpr):
    """The channel and segment of each column, and which own theirs; the others read a real channel, store nothing."""
    A_GROUP: tl.constexpr = group_tiles(D, G)
    ODD: tl.constexpr = odd_groups(D, G)
    column = tl.arange(0, N)
    slot = column % (N // TILES)
    segment = tl.max_constancy(slot // CHANNELS, CHANNELS)
    tile = tl.program_id(0) * TILES + column // (N // TILES)
    group = tl.minimum(tile // A_GROUP, G - 1)
    low = group * (D // G)
    first = low - low % 2 * ODD + tile % A_GROUP * CHANNELS
    if D % (G * CHANNELS) == 0 and D % (TILES * CHANNELS) == 0:
        # neighbours in memory, as the compiler must know to read and write them together
        channel = tl.max_contiguous(tl.multiple_of(first + slot % CHANNELS, CHANNELS), CHANNELS)
        mask = tl.full((N,), True, tl.int1)
    else:
        channel = tl.minimum(first, max(D - CHANNELS, 0)) + slot % CHANNELS
        mask = (channel >= tl.maximum(first, low)) & (channel < low + D // G) & (tile < G * A_GROUP)
        channel = tl.minimum(channel, D - 1)
        if D % 2 == 0 and CHANNELS % 2 == 0 and D >= CHANNELS:
            channel = tl.max_contiguous(tl.multiple_of(channel, 2), 2)
    return channel, segment, mask


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
    A_GROUP: tl.constexpr = group_tiles(D, G)
    group = tl.minimum((tl.program_id(0) * TILES + row // 16) // A_GROUP, G - 1)
    row = row % 4 // 2 * 8 + row % 16 // 4 * 2 + row % 2  # as `interleaved` orders columns
    out = ()
    for d in tl.static_range((K + 14) // 16 + 1):
        at = K - 1 - 16 * d - row + column if TRANSPOSED else 16 * d + column - row
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
def bits_of(x, dtype):
    """A float32 matrix [N, 16] of numbers of `dtype`, as int32: of numbers of 16 bits two neighbours each, [N, 8]."""
    if dtype.primitive_bitwidth == 32:
        return x.to(tl.int32, bitcast=True)
    else:
        low, high = tl.split(tl.reshape(x, (x.shape[0], 8, 2)))
        if dtype == tl.bfloat16:  # the upper half of a float32
            return ((low.to(tl.int32, bitcast=True) >> 16) & 0xFFFF) | (high.to(tl.int32, bitcast=True) & -65536)
        else:
            low = low.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
            return low | (high.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def matrix_of(bits, dtype):
    """The matrix [N, 16] again."""
    if dtype.primitive_bitwidth == 32:
        return bits.to(dtype, bitcast=True)
    else:
        both = tl.join(bits.to(tl.int16), (bits >> 16).to(tl.int16))
        return tl.reshape(both, (bits.shape[0], 16)).to(dtype, bitcast=True)


@triton.jit
def interleaved(x):
    """A left operand with the columns of every 16 in the order 0 1 8 9, 2 3 10 11, and so on.

    A product reads four neighbours a thread and leaves two and two: in this order the same registers are both.
    """
    rows: tl.constexpr = x.shape[0]
    sixteens: tl.constexpr = x.shape[1] // 16
    apart = tl.permute(tl.reshape(x, (rows, sixteens, 2, 4, 2)), (0, 1, 3, 2, 4))
    return tl.reshape(apart, (rows, x.shape[1]))


@triton.jit
def identity(operand):
    """The 16 x 16 unit matrix."""
    return tl.where(tl.arange(0, 16)[:, None] == tl.arange(0, 16)[None, :], 1.0, 0.0).to(operand)


@triton.jit
def pack(rows):
    """16 x [N] as one tensor [N, 16]."""
    a = tl.join(tl.join(rows[0], rows[8]), tl.join(rows[4], rows[12]))
    b = tl.join(tl.join(rows[1], rows[9]), tl.join(rows[5], rows[13]))
    c = tl.join(tl.join(rows[2], rows[10]), tl.join(rows[6], rows[14]))
    d = tl.join(tl.join(rows[3], rows[11]), tl.join(rows[7], rows[15]))
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (rows[0].shape[0], 16))


@triton.jit
def unpack(tensor):
    """[N, 16] as its rows: 16 x [N], a column a thread."""
    even, odd = tl.split(tl.reshape(tensor, (tensor.shape[0], 2, 2, 2, 2)))
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
def operand_of(rows, unit):
    """16 x [N] as the left operand of products: the unit matrix brings them into the layout that products keep."""
    return bits_of(multiply(tile_of(rows, unit.dtype), unit), unit.dtype)


@triton.jit
def convolve(blocks, matrices, TILES: tl.constexpr, BLOCKS: tl.constexpr):
    """A block of outputs, from its own inputs and the BLOCKS-1 blocks before (or, transposed, behind)."""
    operand: tl.constexpr = matrices[0].dtype
    out = multiply(batched(interleaved(matrix_of(blocks[0], operand)), TILES), matrices[0])
    for d in tl.static_range(1, BLOCKS):
        block = batched(interleaved(matrix_of(blocks[d], operand)), TILES)
        out = tl.dot(block, matrices[d], out, input_precision="tf32x3")
    return unpack(tl.reshape(out, (blocks[0].shape[0], 16)))


@triton.jit
def no_blocks(operand: tl.constexpr, N: tl.constexpr, BLOCKS: tl.constexpr):
    """BLOCKS blocks of zeros, as operands of products."""
    out = ()
    for _ in tl.static_range(BLOCKS):
        out = out + (tl.zeros((N, operand.primitive_bitwidth // 2), tl.int32),)
    return out


@triton.jit
def shift(newest, blocks, BLOCKS: tl.constexpr):
    """The operands of a block and the BLOCKS-1 before it.

    The compiler prefetches only in loops that hand no value on unchanged for two rounds: so blocks move.
    """
    out = (newest,)
    for d in tl.static_range(BLOCKS - 1):
        if INTERPRETED:
            out = out + (blocks[d],)
        else:
            moved = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [blocks[d]], tl.int32, is_pure=True, pack=1)
            out = out + (moved,)
    return out


@triton.jit
def turned(block, operand):
    """A block as the right operand [32, 16] of a product over its columns, interleaved: transposed 8 x 8 at a time.

    The same numbers, but in the layout that the product wants: the compiler does not know this instruction.
    """
    if INTERPRETED or operand.primitive_bitwidth != 16:
        apart = tl.permute(tl.reshape(matrix_of(block, operand), (2, 2, 4, 2, 16)), (0, 2, 1, 3, 4))
    else:
        squares = tl.inline_asm_elementwise(
            "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "=r,r", [block], tl.int32, is_pure=True, pack=1
        )
        apart = tl.permute(tl.reshape(matrix_of(squares, operand), (2, 2, 8, 2, 4, 2)), (0, 4, 1, 5, 3, 2))
    return tl.reshape(apart, (32, 16))


@triton.jit
def tile_of(rows, dtype):
    """16 x [N] as a tile."""
    narrow = ()
    for j in tl.static_range(16):
        narrow = narrow + (rows[j].to(dtype),)
    return pack(narrow)


@triton.jit
def numbers(row):
    """The numbers of the 16 rows from row `row` of every column: [N, 16]."""
    return row[:, None] + tl.arange(0, 16)[None, :]


@triton.jit
def place_tile(base, past, row, stride: tl.constexpr, E: tl.constexpr, F: tl.constexpr):
    """The addresses [N, 16] of 16 rows of a projection; above its first row lies the state."""
    t = numbers(row).to(tl.int64)
    inside = base[:, None] + t * stride
    if F == 1:
        return inside
    else:
        return tl.where(t < 0, past[:, None] + (t + F - 1) * E, inside)


@triton.jit
def load_tile(base, row, L, stride: tl.constexpr):
    """16 rows from row `row` of every column, zeros outside the sequence: a tile [N, 16], read in long vectors."""
    t = numbers(row)
    return tl.load(base[:, None] + t.to(tl.int64) * stride, mask=(t >= 0) & (t < L), other=0.0)


@triton.jit
def load_first(base, past, row, L, stride: tl.constexpr, E: tl.constexpr, F: tl.constexpr):
    """The same, with the state's rows above the first."""
    t = numbers(row)
    return tl.load(place_tile(base, past, row, stride, E, F), mask=(t > -F) & (t < L), other=0.0)


@triton.jit
def load_above(base, past, row, L, stride: tl.constexpr, E: tl.constexpr, F: tl.constexpr):
    """The F-1 rows above row `row`, newest first, as float32; above the sequence's first row lies the state."""
    rows = ()
    for j in tl.static_range(1, F):
        t = (row - j).to(tl.int64)
        kept = past + tl.maximum(t + F - 1, 0) * E
        rows = rows + (tl.load(tl.where(t < 0, kept, base + tl.minimum(t, L - 1) * stride)).to(tl.float32),)
    return rows


@triton.jit
def load_kept(base, row, L, channel, mask, D: tl.constexpr, K: tl.constexpr):
    """16 rows from row `row` of a state's [K-1, D] gated inputs, zeros where it has none: 16 x [N].

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
    row = tl.program_id(1) * rows
    return row, (tl.minimum(rows, L - row) + 16 * SEGMENTS - 1) // (16 * SEGMENTS)
