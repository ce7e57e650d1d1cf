"""One query a row in Triton: the cache is split among programs, whose sums a small second kernel puts together."""

# B rows, S places of the cache, H heads, J key-value heads, C channels a head, P = C up to a power of two
# G heads a program, all of one key-value head; N entries that a program reads at once; X splits

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES, WARPS = 32, 8
HEADS = 2  # a program, at most: with more, a program's registers leave room for too few of them
COMBINED = 32  # channels that a program of the second kernel puts together
PROGRAMS = 512  # enough of them keep the memory of a large GPU busy
LEAST = 64  # entries: a program for fewer is not worth its sums
_LOG2_E = 1.4426950408889634
_HIGHEST = tl.constexpr(3.4028234663852886e38)
_LOWEST = tl.constexpr(-1e30)  # below every score, but a number: the difference of two is one too


@triton.jit
def split_kernel(
    q, keys, values, key_units, value_units, begin, end, sums, tops, S, stride_keys, stride_values,
    stride_key_units, stride_value_units, scale,
    H: tl.constexpr, J: tl.constexpr, G: tl.constexpr, C: tl.constexpr, P: tl.constexpr, X: tl.constexpr,
    N: tl.constexpr, CODES: tl.constexpr, BEGIN: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """One split of a row and of G heads: every lane of a block of N entries keeps a softmax of its own."""
    split = tl.program_id(0)
    head = tl.program_id(1) * G
    shared = head // (H // J)
    batch = tl.program_id(2).to(tl.int64)
    low = tl.load(begin + batch).to(tl.int32) if BEGIN else 0
    high = tl.load(end + batch).to(tl.int32) if END else S
    span = tl.cdiv(tl.cdiv(high - low, X), N) * N
    first = low + split * span
    last = tl.minimum(first + span, high)
    channel_P = tl.arange(0, P)
    mask_P = channel_P < C
    keys += batch * stride_keys + shared * C
    values += batch * stride_values + shared * C
    key_units += batch * stride_key_units + shared
    value_units += batch * stride_value_units + shared
    query = q + (batch * H + head) * C + channel_P
    queries = ()
    top = ()
    weight = ()
    blend = ()
    for g in tl.static_range(G):
        queries = queries + (tl.load(query + g * C, mask=mask_P, other=0.0).to(tl.float32) * scale,)
        top = top + (tl.full((N,), _LOWEST, tl.float32),)
        weight = weight + (tl.zeros((N,), tl.float32),)
        blend = blend + (tl.zeros((N, P), tl.float32),)
    for start in range(first, last, N):
        place_N = start + tl.arange(0, N)
        there_N = place_N < last
        place_N = place_N.to(tl.int64)
        mask_NP = there_N[:, None] & mask_P[None, :]
        at_NP = place_N[:, None] * (J * C) + channel_P[None, :]
        k_NP = tl.load(keys + at_NP, mask=mask_NP, other=0.0)
        v_NP = tl.load(values + at_NP, mask=mask_NP, other=0.0)
        if CODES:
            k_unit_N = tl.load(key_units + place_N * J, mask=there_N, other=0.0)
            v_unit_N = tl.load(value_units + place_N * J, mask=there_N, other=0.0)
        k_NP = k_NP.to(tl.float32)
        v_NP = v_NP.to(tl.float32)
        new_top = ()
        new_weight = ()
        new_blend = ()
        for g in tl.static_range(G):
            score_N = tl.sum(k_NP * queries[g][None, :], axis=1)
            if CODES:
                score_N *= k_unit_N
            score_N = tl.where(there_N, score_N, float("-inf"))
            top_N = tl.maximum(top[g], score_N)
            fade_N = tl.exp2(top[g] - top_N)
            part_N = tl.exp2(score_N - top_N)
            new_top = new_top + (top_N,)
            new_weight = new_weight + (weight[g] * fade_N + part_N,)
            if CODES:
                part_N *= v_unit_N
            new_blend = new_blend + (blend[g] * fade_N[:, None] + part_N[:, None] * v_NP,)
        top = new_top
        weight = new_weight
        blend = new_blend
    for g in tl.static_range(G):
        highest = tl.max(top[g], axis=0)
        fade_N = tl.exp2(top[g] - highest)
        place = (batch * H + head + g) * X + split
        tl.store(tops + place * 2, highest)
        tl.store(tops + place * 2 + 1, tl.sum(weight[g] * fade_N, axis=0))
        tl.store(sums + place * C + channel_P, tl.sum(blend[g] * fade_N[:, None], axis=0), mask=mask_P)


@triton.jit
def combine_kernel(sums, tops, y, C: tl.constexpr, K: tl.constexpr, X: tl.constexpr):
    """K channels of one row and head: the splits' sums, each by what its softmax is worth beside the others."""
    head = tl.program_id(1).to(tl.int64)
    channel_K = tl.program_id(0) * K + tl.arange(0, K)
    mask_K = channel_K < C
    place_X = head * X + tl.arange(0, X)
    top_X = tl.load(tops + place_X * 2)
    fade_X = tl.exp2(top_X - tl.max(top_X, axis=0))
    weight = tl.sum(tl.load(tops + place_X * 2 + 1) * fade_X, axis=0)
    sums_XK = tl.load(sums + place_X[:, None] * C + channel_K[None, :], mask=mask_K[None, :], other=0.0)
    # of a row that sees nothing all sums are 0
    y_K = tl.sum(sums_XK * fade_X[:, None], axis=0) / tl.where(weight > 0, weight, 1.0)
    tl.store(y + head * C + channel_K, y_K.to(y.dtype.element_ty), mask=mask_K)


@triton.jit
def half(z, at_c, mask_c):
    """Half of a head's channels, as float32."""
    return tl.load(z + at_c, mask=mask_c, other=0.0).to(tl.float32)


@triton.jit
def append_kernel(
    z, frequencies, end, q, keys, values, key_units, value_units, S, stride_z, stride_keys, stride_values,
    stride_key_units, stride_value_units, interpolation,
    H: tl.constexpr, J: tl.constexpr, C: tl.constexpr, P: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """One head of one row's new token: a query is rotated, a key rotated and put away, a value put away."""
    part = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    position = tl.load(end + batch)
    place = tl.minimum(position, S - 1)
    channel_c = tl.arange(0, P)
    mask_c = channel_c < C // 2
    a_c = half(z + batch * stride_z + part * C, channel_c, mask_c)
    b_c = half(z + batch * stride_z + part * C + C // 2, channel_c, mask_c)
    if part < H + J:
        # rounded at every step as plain torch does: far along a sequence, an angle's last bit is a large one
        angle_c = tl.load(frequencies + channel_c, mask=mask_c, other=0.0)
        angle_c = tl.div_rn(position.to(tl.float32), interpolation) * angle_c
        cos_c = tl.cos(angle_c)
        sin_c = tl.sin(angle_c)
        turned_c = (a_c * cos_c - b_c * sin_c).to(z.dtype.element_ty).to(tl.float32)
        b_c = (a_c * sin_c + b_c * cos_c).to(z.dtype.element_ty).to(tl.float32)
        a_c = turned_c
    if part < H:
        query = q + (batch * H + part) * C + channel_c
        tl.store(query, a_c.to(q.dtype.element_ty), mask=mask_c)
        tl.store(query + C // 2, b_c.to(q.dtype.element_ty), mask=mask_c)
    else:
        head = part - H
        to = keys + batch * stride_keys
        units = key_units + batch * stride_key_units
        if head >= J:
            head -= J
            to = values + batch * stride_values
            units = value_units + batch * stride_value_units
        to += (place * J + head) * C + channel_c
        if CODES:
            largest = tl.maximum(tl.max(tl.abs(a_c), axis=0), tl.max(tl.abs(b_c), axis=0))
            usual = (largest > 0) & (largest < float("inf"))
            scale = tl.where(usual, tl.minimum(tl.div_rn(448.0, tl.where(usual, largest, 1.0)), _HIGHEST), 1.0)
            tl.store(units + place * J + head, tl.div_rn(1.0, scale))
            a_c = tl.minimum(tl.maximum(a_c * scale, -448.0), 448.0)
            b_c = tl.minimum(tl.maximum(b_c * scale, -448.0), 448.0)
        tl.store(to, a_c.to(keys.dtype.element_ty), mask=mask_c)
        tl.store(to + C // 2, b_c.to(keys.dtype.element_ty), mask=mask_c)


def splits(programs: int, S: int) -> int:
    """Into how many parts to split a cache of S places: a power of two, whatever the rows hold."""
    wanted = triton.next_power_of_2(triton.cdiv(PROGRAMS, programs))
    return min(wanted, triton.next_power_of_2(triton.cdiv(S, LEAST)))


def attend(
    q_BHC: Tensor,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None,
    value_units_BSJ: Tensor | None,
    begin_B: Tensor | None,
    end_B: Tensor | None,
) -> Tensor:
    """Run both kernels on a contiguous q, caches whose rows are in one piece each, and contiguous bounds."""
    B, H, C = q_BHC.shape
    S, J = keys_BSJC.shape[1:3]
    G = math.gcd(H // J, HEADS)
    X = splits(B * H // G, S)
    sums_BHXC = torch.empty(B, H, X, C, dtype=torch.float32, device=q_BHC.device)
    tops_BHX2 = torch.empty(B, H, X, 2, dtype=torch.float32, device=q_BHC.device)
    y_BHC = torch.empty_like(q_BHC)
    codes = key_units_BSJ is not None and value_units_BSJ is not None
    k_units, v_units = (key_units_BSJ, value_units_BSJ) if codes else (tops_BHX2, tops_BHX2)  # not read
    if codes:
        keys_BSJC, values_BSJC = (tensor.view(torch.float8_e4m3fn) for tensor in (keys_BSJC, values_BSJC))
    split_kernel[(X, H // G, B)](
        q_BHC, keys_BSJC, values_BSJC, k_units, v_units,
        q_BHC if begin_B is None else begin_B, q_BHC if end_B is None else end_B, sums_BHXC, tops_BHX2,
        S, keys_BSJC.stride(0), values_BSJC.stride(0), k_units.stride(0), v_units.stride(0), C**-0.5 * _LOG2_E,
        H, J, G, C, triton.next_power_of_2(C), X, ENTRIES, codes, begin_B is not None, end_B is not None,
        num_warps=WARPS,
    )  # fmt: skip
    combine_kernel[(triton.cdiv(C, COMBINED), B * H)](sums_BHXC, tops_BHX2, y_BHC, C, COMBINED, X, num_warps=WARPS)
    return y_BHC


def append(
    z_BE: Tensor,
    frequencies: Tensor,
    interpolation: float,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None,
    value_units_BSJ: Tensor | None,
    end_B: Tensor,
) -> Tensor:
    """Run the kernel on a z whose last stride is 1, and caches whose rows are in one piece each; move `end_B` on."""
    B, S, J, C = keys_BSJC.shape
    H = z_BE.shape[1] // C - 2 * J
    q_BHC = torch.empty(B, H, C, dtype=z_BE.dtype, device=z_BE.device)
    codes = key_units_BSJ is not None and value_units_BSJ is not None
    k_units, v_units = (key_units_BSJ, value_units_BSJ) if codes else (frequencies, frequencies)  # not written
    if codes:
        keys_BSJC, values_BSJC = (tensor.view(torch.float8_e4m3fn) for tensor in (keys_BSJC, values_BSJC))
    append_kernel[(H + 2 * J, B)](
        z_BE, frequencies, end_B, q_BHC, keys_BSJC, values_BSJC, k_units, v_units,
        S, z_BE.stride(0), keys_BSJC.stride(0), values_BSJC.stride(0), k_units.stride(0), v_units.stride(0),
        float(interpolation), H, J, C, triton.next_power_of_2(C // 2), codes, num_warps=1,
    )  # fmt: skip
    end_B.add_(1).clamp_(max=S)
    return q_BHC
