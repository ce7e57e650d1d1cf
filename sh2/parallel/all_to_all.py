"""Trading shards of the sequence for shards of the channels or heads, and back (paper section 4, a2a).

Every rank then has whole sequences of its part of the channels, and the operator needs to know nothing. Pipelined, the
channels go in segments: while one is filtered, the next are on their way. A rank's channels are whole filter groups,
and whole heads of queries, keys and values.
"""

# B batch, L tokens of a rank, N ranks, S segments, C pieces of a sequence, l tokens of a piece, D width, E = 3D
# H heads, J key-value heads, c channels a head, U channels or heads that one rank receives

import math

import torch
from torch import Tensor

from sh2.mixers.attention import attend
from sh2.parallel.exchange import AllToAll, Ranks, exchanged, start
from sh2.parallel.halo import Filters, Operator

_SEGMENTS = 4


def by_channels(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor) -> Tensor:
    """Convolve the whole sequence on a rank's share of the channels."""
    return _by_segments(ranks, operator, filters, z_BLE, 1)


def by_channels_pipelined(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor) -> Tensor:
    """Like `by_channels`, in up to four segments that hold whole filter groups."""
    groups = min(len(tensor) for tensor in filters if tensor is not None)
    return _by_segments(ranks, operator, filters, z_BLE, math.gcd(_SEGMENTS, groups // ranks.shards.ranks))


def heads(ranks: Ranks, q_BLHc: Tensor, k_BLJc: Tensor, v_BLJc: Tensor) -> Tensor:
    """Attend over the whole sequence with a rank's share of the heads; queries and keys are rotated already."""
    N = ranks.shards.ranks
    exchange = AllToAll(ranks.group)
    parts_BLNUc = torch.cat([tensor.unflatten(2, (N, -1)) for tensor in (q_BLHc, k_BLJc, v_BLJc)], dim=3)
    whole_BLUc = _whole(ranks, exchanged(exchange, parts_BLNUc.movedim(2, 0)))
    H, J = q_BLHc.shape[2] // N, k_BLJc.shape[2] // N
    q_BLHc, k_BLJc, v_BLJc = whole_BLUc.split([H, J, J], dim=2)
    y_BLUc = attend(q_BLHc, k_BLJc, v_BLJc, None)
    return exchanged(exchange, _parts(ranks, y_BLUc)).movedim(0, 2).flatten(2, 3)


def _by_segments(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor, segments: int) -> Tensor:
    N, mine = ranks.shards.ranks, ranks.shards.rank
    exchange = AllToAll(ranks.group)
    z_SNBL3U = z_BLE.unflatten(2, (3, N, segments, -1)).permute(4, 3, 0, 1, 2, 5)
    coming = [start(exchange, z_NBL3U.flatten(3)) for z_NBL3U in z_SNBL3U]
    going = []
    for segment, started in enumerate(coming):
        share = _share(filters, mine * segments + segment, N * segments)
        y_BLU, _ = operator(_whole(ranks, *started.finish()), *share, None)
        going.append(start(exchange, _parts(ranks, y_BLU)))
    y_SNBLU = torch.stack([y_NBLU for started in going for y_NBLU in started.finish()])
    return y_SNBLU.permute(2, 3, 1, 0, 4).flatten(2)


def _share(filters: Filters, part: int, parts: int) -> Filters:
    """The filters of one part of the channels; the featurizer's are in thirds."""
    featurizer, inner = filters[:2], filters[2:]
    return (
        *(
            tensor if tensor is None else tensor.unflatten(0, (3, parts, -1))[:, part].flatten(0, 1)
            for tensor in featurizer
        ),
        *(tensor if tensor is None else tensor.unflatten(0, (parts, -1))[part] for tensor in inner),
    )


def _whole(ranks: Ranks, x_NBLU: Tensor) -> Tensor:
    """Put the tokens of all ranks [N, B, P l, ...] into the sequence's order [B, C l, ...]."""
    x_NPBlU = x_NBLU.unflatten(2, (ranks.shards.per_rank, -1)).transpose(1, 2)
    return ranks.shards.in_order(x_NPBlU).transpose(0, 1).flatten(1, 2)


def _parts(ranks: Ranks, y_BLU: Tensor) -> Tensor:
    """What `_whole` did, undone."""
    y_CBlU = y_BLU.unflatten(1, (ranks.shards.count, -1)).transpose(0, 1)
    return ranks.shards.by_rank(y_CBlU).transpose(1, 2).flatten(2, 3)
