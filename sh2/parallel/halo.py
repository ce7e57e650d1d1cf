"""FIR filters over pieces of a sequence: what a piece needs of the past is the end of the piece before, its halo.

Hyena-SE and Hyena-MR see F-1 tokens back with the featurizer and K-1 more with the inner filter, H = F + K - 2 in all.
The operator is a causal map (z, state) -> (y, state), so all three ways are a few calls of it:

    state             the state after a piece depends on its last H rows alone. It is made of them first and sent, and
                      the piece runs from zeros meanwhile: all but its first H outputs are right. Those run again from
                      the state that came in. Sent: F-1 rows of z and K-1 of the gated input.
    p2p               the last H rows of z are sent; the state is made of them, and the piece runs from it (paper 4).
    p2p-overlapped    the same rows travel while the piece runs from zeros (paper 4; there the halo's part is added to
                      the first outputs, which the gates around the filter do not allow: they run again).

What runs beside the pieces is a few rows, and so must be what is moved in memory: no gradient of a piece is copied.
"""

# B batch, P pieces a rank, X = B P rows, l tokens a piece, D width, E = 3D, F featurizer taps, K inner taps, H rows

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import FirState, hyena_fir_state
from sh2.errors import Sh2Error
from sh2.parallel.exchange import Ranks, Started, start

Operator = Callable[..., tuple[Tensor, Any]]
"""A hyena operator: called with a projection, the filters and a state, it returns the outputs and the state after."""
Filters = tuple[Tensor | None, ...]
"""What an operator takes between a projection and a state."""


def by_state(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor) -> Tensor:
    """Send states, and run the piece while they travel."""
    z_XlE, head_XHE, tail_XHE = _with_borders(ranks, filters, z_BLE)
    sent = _send(ranks, *_state_after(filters, tail_XHE))
    y_XlD, _ = operator(z_XlE, *filters, None)
    return ranks.shards.unrows(_corrected(operator, filters, y_XlD, head_XHE, FirState(*_received(ranks, sent))))


def by_halo(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor) -> Tensor:
    """Send inputs, wait for those of the piece before, and run."""
    z_XlE, _, tail_XHE = _with_borders(ranks, filters, z_BLE)
    (halo_XHE,) = _received(ranks, _send(ranks, tail_XHE))
    y_XlD, _ = operator(z_XlE, *filters, _state_of(ranks, filters, halo_XHE))
    return ranks.shards.unrows(y_XlD)


def by_halo_overlapped(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor) -> Tensor:
    """Send inputs, and run the piece while they travel."""
    z_XlE, head_XHE, tail_XHE = _with_borders(ranks, filters, z_BLE)
    sent = _send(ranks, tail_XHE)
    y_XlD, _ = operator(z_XlE, *filters, None)
    (halo_XHE,) = _received(ranks, sent)
    state = _state_of(ranks, filters, halo_XHE)
    return ranks.shards.unrows(_corrected(operator, filters, y_XlD, head_XHE, state))


def borders(ranks: Ranks, z_BLE: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pieces as rows, and copies of the first and the last tokens of each.

    Raises:
        Sh2Error: the pieces are shorter than that.
    """
    z_XlE = ranks.shards.rows(z_BLE)
    if z_XlE.shape[1] < rows:
        raise Sh2Error(
            f"the sequence is cut into pieces of {z_XlE.shape[1]} tokens, and a filter looks back over {rows}"
        ).hint("use longer sequences, fewer ranks, or the method a2a")
    return _Borders.apply(z_XlE, rows)


def from_before(ranks: Ranks, tail_XHE: Tensor) -> Tensor:
    """Return the last rows of the piece before every piece; zeros before the first."""
    (halo_XHE,) = _received(ranks, _send(ranks, tail_XHE))
    return halo_XHE


def _with_borders(ranks: Ranks, filters: Filters, z_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    featurizer_EF, _, taps_GK, _ = filters
    assert featurizer_EF is not None
    assert taps_GK is not None
    # filters of one tap see no past; an operator cannot run over no tokens
    return borders(ranks, z_BLE, max(1, featurizer_EF.shape[1] + taps_GK.shape[1] - 2))


def _send(ranks: Ranks, *tensors_XHE: Tensor) -> Started:
    return start(ranks.to_next, *(ranks.shards.by_piece(tensor) for tensor in tensors_XHE))


def _received(ranks: Ranks, sent: Started) -> tuple[Tensor, ...]:
    return tuple(ranks.shards.by_row(tensor) for tensor in sent.finish())


def _state_of(ranks: Ranks, filters: Filters, halo_XHE: Tensor) -> FirState:
    """The state after a halo. A sequence starts with zeros, not with what a featurizer's bias makes of them."""
    state = _state_after(filters, halo_XHE)
    pieces = ranks.shards.by_piece(state.inner_BPD)
    inner = torch.stack([one * float(piece > 0) for piece, one in zip(ranks.shards.mine, pieces, strict=True)])
    return FirState(state.featurizer_BPE, ranks.shards.by_row(inner))


def _state_after(filters: Filters, rows_XHE: Tensor) -> FirState:
    featurizer_EF, bias_E, taps_GK, _ = filters
    assert featurizer_EF is not None
    assert taps_GK is not None
    return hyena_fir_state(rows_XHE, featurizer_EF, bias_E, taps_GK.shape[1])


def _corrected(operator: Operator, filters: Filters, y_XlD: Tensor, head_XHE: Tensor, state: FirState) -> Tensor:
    """Give outputs from a state of zeros the first rows that they have from the true one."""
    both = FirState(*(torch.cat([tensor, torch.zeros_like(tensor)]) for tensor in state))
    true_XHD, zero_XHD = operator(torch.cat([head_XHE, head_XHE]), *filters, both)[0].chunk(2)
    return _Correction.apply(y_XlD, true_XHD, zero_XHD)


class _Borders(torch.autograd.Function):
    """Copies of the first and last rows. Slices cost what a filter does: each has a gradient of the whole size."""

    @staticmethod
    def forward(ctx: Any, z_XlE: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.rows = rows
        return z_XlE.view_as(z_XlE), z_XlE[:, :rows].clone(), z_XlE[:, z_XlE.shape[1] - rows :].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        dz_XlE, dhead_XHE, dtail_XHE = grads
        # in place: one operator has read z, and what it gives for its gradient is nobody else's
        dz_XlE[:, : ctx.rows] += dhead_XHE
        dz_XlE[:, dz_XlE.shape[1] - ctx.rows :] += dtail_XHE
        return dz_XlE, None


class _Correction(torch.autograd.Function):
    """Adds one thing to the first rows of outputs and takes away another, which is what they are."""

    @staticmethod
    def forward(ctx: Any, y_XlD: Tensor, true_XHD: Tensor, zero_XHD: Tensor) -> Tensor:
        ctx.rows = true_XHD.shape[1]
        y_XlD[:, : ctx.rows] = true_XHD
        ctx.mark_dirty(y_XlD)
        return y_XlD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (dy_XlD,) = grads
        dhead_XHD = dy_XlD[:, : ctx.rows]
        return dy_XlD, dhead_XHD, -dhead_XHD
