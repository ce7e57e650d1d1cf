"""What the streaming kernels share: a program owns a few channels and walks along the rows.

The last inputs of a filter stay in registers, as a tuple with the newest first; every loop over taps unrolls.
"""

# C channels a program, F featurizer taps, K inner taps; a tuple of n tensors [C] is written n x [C]

import triton
import triton.language as tl

# what every kernel is launched with: a product and a sum are one instruction, rounded once
FUSED = {"enable_fp_fusion": True}


@triton.jit
def place(D: tl.constexpr, C: tl.constexpr):
    """The channels of this program and which of them exist; the others read the last one's data, and store nothing."""
    channel = tl.program_id(0) * C + tl.arange(0, C)
    mask = channel < D
    if D % C != 0:
        channel = tl.minimum(channel, D - 1)
    return channel, mask


@triton.jit
def everywhere(x, like):
    """A scalar in every lane. Comparisons are made there: Triton's interpreter takes no scalar for a mask."""
    return tl.full(like.shape, x, tl.int64)


@triton.jit
def load_taps(taps, channel_C, mask_C, K: tl.constexpr):
    """Load filters stored [channels, K]: K x [C], tap 0 first."""
    out = ()
    for j in tl.static_range(K):
        out = out + (tl.load(taps + channel_C * K + j, mask=mask_C, other=0.0),)
    return out


@triton.jit
def load_before(z, past, t, stride, channel_C, mask_C, E, F: tl.constexpr):
    """Load row t of a projection [L, E] as float32; rows before the first come from the state [F-1, E]."""
    inside = tl.load(z + t * stride + channel_C, mask=mask_C & (t >= 0), other=0.0)
    before = tl.load(past + (t + F - 1) * E + channel_C, mask=mask_C & (t < 0), other=0.0)
    return tl.where(t >= 0, inside, before).to(tl.float32)


@triton.jit
def load_filters(
    featurizer, bias, channel, mask, D: tl.constexpr, F: tl.constexpr, BIAS: tl.constexpr,
    LOW: tl.constexpr = 0, HIGH: tl.constexpr = 3,
):  # fmt: skip
    """The featurizer's filters of thirds LOW to HIGH - 1: F taps, and the bias if there is one."""
    out = ()
    for third in tl.static_range(LOW, HIGH):
        filter = load_taps(featurizer, channel + third * D, mask, F)
        if BIAS:
            filter = filter + (tl.load(bias + channel + third * D, mask=mask, other=0.0),)
        out = out + (filter,)
    return out


@triton.jit
def load_history(
    z, past, t, stride, channel, mask, D: tl.constexpr, F: tl.constexpr,
    LOW: tl.constexpr = 0, HIGH: tl.constexpr = 3,
):  # fmt: skip
    """Rows t-1 .. t-F+1 of thirds LOW to HIGH - 1, newest first; rows before the first come from the state."""
    out = ()
    for third in tl.static_range(LOW, HIGH):
        rows = ()
        for j in tl.static_range(1, F):
            row = everywhere(t - j, channel)
            rows = rows + (load_before(z, past, row, stride, channel + third * D, mask, 3 * D, F),)
        out = out + (rows,)
    return out


@triton.jit
def fir(newest, past, taps, K: tl.constexpr):
    """One output of a K-tap filter: the newest input, and the K-1 before it."""
    out = newest * taps[0]
    for j in tl.static_range(1, K):
        out += past[j - 1] * taps[j]
    return out


@triton.jit
def feature(newest, past, filter, F: tl.constexpr):
    """One output of the featurizer; a filter's last entry, beyond its F taps, is the bias if there is one."""
    out = newest * filter[0]
    if len(filter) > F:
        out += filter[F]
    for j in tl.static_range(1, F):
        out += past[j - 1] * filter[j]
    return out


@triton.jit
def zeros(n: tl.constexpr, like):
    """n x [C] zeros."""
    out = ()
    for _ in tl.static_range(n):
        out = out + (tl.zeros(like.shape, tl.float32),)
    return out


@triton.jit
def push(newest, past, K: tl.constexpr):
    """The K-1 inputs before the next one."""
    if K == 1:
        return past
    else:
        return (newest,) + past[: K - 2]


@triton.jit
def step_feature(
    z, past, taps, bias, channel_C, mask_C, E: tl.constexpr, F: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    """One token of a featurizer whose past inputs [F-1, E] move up by one."""
    newest_C = tl.load(z + channel_C, mask=mask_C, other=0.0)
    out_C = newest_C.to(tl.float32) * tl.load(taps + channel_C * F, mask=mask_C, other=0.0).to(tl.float32)
    if BIAS:
        out_C += tl.load(bias + channel_C, mask=mask_C, other=0.0).to(tl.float32)
    for j in tl.static_range(1, F):
        row = past + (F - 1 - j) * E + channel_C
        before_C = tl.load(row, mask=mask_C, other=0.0)
        out_C += before_C.to(tl.float32) * tl.load(taps + channel_C * F + j, mask=mask_C, other=0.0).to(tl.float32)
        tl.store(row, newest_C, mask=mask_C)
        newest_C = before_C
    return out_C
