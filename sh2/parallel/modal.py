"""Hyena-LI over pieces of a sequence: its filter is a diagonal linear recurrence, so a piece needs the modes before it.

With e_j the modes that piece j of l tokens adds to the modes at its end, the modes before piece c are, exactly,

    s_c = sum_(j<c) lambda^(l (c-1-j)) e_j

All e_j are gathered at once: N numbers a channel and piece, whatever the length. (Not in the paper, which convolves
long filters by all-to-all or by an FFT across ranks.) Backward is the mirror image: the gradients of the e_j are summed
over the later pieces and scattered. The operator stops halfway for both, and no row is run twice.
"""

# B batch, P pieces a rank, C pieces in all, X = B P rows, l tokens a piece, D width, E = 3D, N modes, H rows

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import ModalPiece
from sh2.parallel.exchange import AllGather, Ranks, exchanged
from sh2.parallel.halo import Filters, borders, from_before


def by_state(ranks: Ranks, operator: Callable[..., ModalPiece], filters: Filters, z_BLE: Tensor) -> Tensor:
    """Sum every piece up, gather what they add to the modes, and go on from the modes before each."""
    featurizer_EF, _, log_poles_DN, _, _ = filters
    assert featurizer_EF is not None
    assert log_poles_DN is not None
    z_XlE, _, tail_XHE = borders(ranks, z_BLE, featurizer_EF.shape[1] - 1)
    piece = operator(z_XlE, *filters, from_before(ranks, tail_XHE))
    modes_XDN = before(ranks, piece.added_BDN, log_poles_DN, z_XlE.shape[1])
    return ranks.shards.unrows(piece.outputs(modes_XDN))


def before(ranks: Ranks, added_XDN: Tensor, log_poles_DN: Tensor, length: int) -> Tensor:
    """Turn what every piece adds to the modes into the modes before this rank's pieces.

    Args:
        length: tokens a piece.
    """
    shards = ranks.shards
    added_CBDN = shards.in_order(exchanged(AllGather(ranks.group), shards.by_piece(added_XDN)))
    log_decay_DN = log_poles_DN.to(added_CBDN.dtype) * length
    piece = torch.arange(shards.count, device=log_decay_DN.device)
    modes = []
    for mine in shards.mine:
        steps_C11 = (mine - 1 - piece).clamp(min=0)[:, None, None]
        # the first piece takes nothing of all: its graph is that of all others, and so is its backward
        decay_CDN = torch.exp(log_decay_DN * steps_C11) * (piece < mine)[:, None, None]
        modes.append(torch.einsum("cdn,cbdn->bdn", decay_CDN, added_CBDN))
    return shards.by_row(torch.stack(modes))
