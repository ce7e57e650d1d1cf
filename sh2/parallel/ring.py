"""Attention with keys and values going around the ranks (paper section 4, ring).

Every rank keeps its queries. In N turns it meets the keys and values of all ranks; each time it attends to what it may
see of them, and merges that with what it has by the logarithms of the softmax's denominators:

    m = logaddexp(m_1, m_2),   y = y_1 exp(m_1 - m) + y_2 exp(m_2 - m)

Under zig-zag sharding every turn but the first is a rectangle of the same size on every rank: rank r sees the earlier
half of the tokens of ranks below it with all its queries, and with the later half of its queries all tokens of those
above. Contiguous shards work too, but rank 0 has nothing to do after its first turn.

Backward goes around once more: P_ij = exp(S_ij - m_i) needs only the merged m, so each turn's gradients are those of
plain attention with the merged outputs in the place of its own. Gradients of keys and values travel with them, and are
home after N turns. The turn's keys and values travel while it is computed.
"""

# B batch, L tokens of a rank, H heads, J key-value heads, c channels a head

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sh2.parallel import rectangles
from sh2.parallel.exchange import Flight, Ranks, Turn
from sh2.parallel.sharding import Shards
from sh2.sharing import Sharding


class Part(NamedTuple):
    """What a rank sees of another's tokens: a rectangle or, of its own, a triangle."""

    queries: slice
    keys: slice
    causal: bool


def ring(ranks: Ranks, q_BLHc: Tensor, k_BLJc: Tensor, v_BLJc: Tensor) -> Tensor:
    """Attend over the whole sequence; queries and keys are rotated already.

    Returns:
        y_BLHc in v's dtype.
    """
    q_BHLc, k_BJLc, v_BJLc = (tensor.to(v_BLJc.dtype).transpose(1, 2) for tensor in (q_BLHc, k_BLJc, v_BLJc))
    return _Ring.apply(ranks, q_BHLc, k_BJLc, v_BJLc).transpose(1, 2)


def visible(shards: Shards, other: int, length: int) -> Part | None:
    """What this rank, with `length` tokens, sees of another's; None for nothing."""
    everything, half = slice(0, length), length // 2
    if other == shards.rank:
        return Part(everything, everything, causal=True)
    if shards.sharding is Sharding.CONTIGUOUS:
        return Part(everything, everything, causal=False) if other < shards.rank else None
    if other < shards.rank:
        return Part(everything, slice(0, half), causal=False)
    return Part(slice(half, length), everything, causal=False)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, q_BHLc: Tensor, k_BJLc: Tensor, v_BJLc: Tensor) -> Tensor:
        y_BHLc = torch.zeros_like(q_BHLc, dtype=torch.promote_types(q_BHLc.dtype, torch.float32))
        m_BHL = y_BHLc.new_full(y_BHLc.shape[:3], -torch.inf)
        for part, (k, v) in _around(ranks, k_BJLc, v_BJLc):
            if part is not None:
                q = q_BHLc[:, :, part.queries]
                y, m = rectangles.attend(q, k[:, :, part.keys], v[:, :, part.keys], causal=part.causal)
                _merge(y_BHLc[:, :, part.queries], m_BHL[:, :, part.queries], y, m)
        ctx.ranks = ranks
        y_BHLc = y_BHLc.to(v_BJLc.dtype)
        ctx.save_for_backward(q_BHLc, k_BJLc, v_BJLc, y_BHLc, m_BHL)
        return y_BHLc

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHLc, k_BJLc, v_BJLc, y_BHLc, m_BHL = ctx.saved_tensors
        (dy_BHLc,) = grads
        wide = torch.promote_types(q_BHLc.dtype, torch.float32)
        dq_BHLc = torch.zeros_like(q_BHLc, dtype=wide)
        summed: tuple[Tensor, ...] = tuple(torch.zeros_like(tensor, dtype=wide) for tensor in (k_BJLc, v_BJLc))
        flight: Flight | None = None
        for part, (k, v) in _around(ctx.ranks, k_BJLc, v_BJLc):
            gradients = None
            if part is not None:
                dy, q, y, m = (tensor[:, :, part.queries] for tensor in (dy_BHLc, q_BHLc, y_BHLc, m_BHL))
                dq, *gradients = rectangles.attend_backward(
                    dy, q, k[:, :, part.keys], v[:, :, part.keys], y, m, causal=part.causal
                )
                dq_BHLc[:, :, part.queries] += dq
            if flight is not None:
                summed = flight.land()
            if part is not None and gradients is not None:
                for total, gradient in zip(summed, gradients, strict=True):
                    total[:, :, part.keys] += gradient
            flight = Turn(ctx.ranks.group).begin(summed)
        assert flight is not None
        dk_BJLc, dv_BJLc = flight.land()
        return None, dq_BHLc.to(q_BHLc.dtype), dk_BJLc.to(k_BJLc.dtype), dv_BJLc.to(v_BJLc.dtype)


def _around(ranks: Ranks, *tensors: Tensor) -> Iterator[tuple[Part | None, tuple[Tensor, ...]]]:
    """Yield every rank's tensors, this one's first, and what of them is seen; the next ones travel meanwhile."""
    shards, length = ranks.shards, tensors[0].shape[2]
    for turn in range(shards.ranks):
        flight = Turn(ranks.group).begin(tensors) if turn < shards.ranks - 1 else None
        yield visible(shards, (shards.rank - turn) % shards.ranks, length), tensors
        if flight is not None:
            tensors = flight.land()


def _merge(y_BHQc: Tensor, m_BHQ: Tensor, more_BHQc: Tensor, more_m_BHQ: Tensor) -> None:
    """Add what was seen of other keys, in place."""
    merged_BHQ = torch.logaddexp(m_BHQ, more_m_BHQ)
    y_BHQc.mul_((m_BHQ - merged_BHQ).exp()[..., None])
    y_BHQc.add_(more_BHQc * (more_m_BHQ - merged_BHQ).exp()[..., None])
    m_BHQ.copy_(merged_BHQ)
