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
from sh2.parallel.exchange import AllGather, Ranks, start
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
    sent = start(AllGather(ranks.group), shards.by_piece(added_XDN))
    piece_C = torch.arange(shards.count, device=log_poles_DN.device)
    steps_PC = torch.stack([mine - 1 - piece_C for mine in shards.mine])
    log_decay_PCDN = log_poles_DN.to(added_XDN.dtype) * (steps_PC.clamp(min=0) * length)[..., None, None]
    # the first piece takes nothing of all: its graph is that of all others, and so is its backward
    decay_PCDN = torch.exp(log_decay_PCDN) * (steps_PC >= 0)[..., None, None]
    (added_NPBDN,) = sent.finish()
    return shards.by_row(torch.einsum("pcdn,cbdn->pbdn", decay_PCDN, shards.in_order(added_NPBDN)))
