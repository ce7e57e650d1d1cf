"""Causal FIR filters in plain torch: y_t = sum_k h_k x_(t-k), tap 0 on the current token.

The state is the last K-1 inputs, zeros at the start of a sequence, so a short prompt needs no case of its own.
"""

# B batch, L length, D channels, G filter groups, C channels a group, K taps, P = K-1 past inputs
# T block of tokens, W = T+K-1 inputs that a block sees, X blocks of all sequences

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# rows of the banded Toeplitz matrix for short filters: at least this many, or the products are too thin to be fast
_SMALLEST_BLOCK = 16
_CACHED_ROWS = 128  # of all sequences


def _with_past(x_BLD: Tensor, past_BPD: Tensor | None, num_past: int) -> Tensor:
    """Put the `num_past` inputs before the first in front of x."""
    if past_BPD is None:
        past_BPD = x_BLD.new_zeros(x_BLD.shape[0], num_past, x_BLD.shape[2])
    return torch.cat([past_BPD.to(x_BLD.dtype), x_BLD], dim=1)


def _last_rows(padded_BSD: Tensor, num_past: int) -> Tensor:
    """The rows before the next call's first, as a copy: the state must not keep all inputs alive."""
    return padded_BSD[:, padded_BSD.shape[1] - num_past :].clone()


class _ShiftedSum(torch.autograd.Function):
    """Sum of shifted inputs, a tap a pass. Autograd's own backward would zero-fill the whole input once a tap."""

    @staticmethod
    def forward(ctx: Any, padded_BSD: Tensor, taps_DK: Tensor) -> Tensor:
        ctx.save_for_backward(padded_BSD, taps_DK)
        K = taps_DK.shape[1]
        L = padded_BSD.shape[1] - K + 1
        y_BLD = padded_BSD[:, K - 1 :] * taps_DK[:, 0]
        for k in range(1, K):
            y_BLD.addcmul_(padded_BSD[:, K - 1 - k : K - 1 - k + L], taps_DK[:, k])
        return y_BLD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        padded_BSD, taps_DK = ctx.saved_tensors
        (grad_BLD,) = grads
        K, L = taps_DK.shape[1], grad_BLD.shape[1]
        grad_padded_BSD = torch.zeros_like(padded_BSD)
        grad_taps_KD = torch.zeros_like(taps_DK.mT)
        # a graph fuses the passes; without one, a few rows at a time stay in a CPU's cache for all of them
        few = grad_BLD.device.type == "cpu" and not torch.compiler.is_compiling()
        for first, rows_BLD in _pieces(grad_BLD, max(1, _CACHED_ROWS // len(grad_BLD)) if few else L):
            for k in range(K):
                seen = slice(first + K - 1 - k, first + K - 1 - k + rows_BLD.shape[1])
                grad_padded_BSD[:, seen].addcmul_(rows_BLD, taps_DK[:, k])
                grad_taps_KD[k] += (rows_BLD * padded_BSD[:, seen]).sum(dim=(0, 1))
        return grad_padded_BSD, grad_taps_KD.mT


def _pieces(x_BLD: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces of so many rows, each with the number of its first."""
    yield from ((first, x_BLD[:, first : first + rows]) for first in range(0, x_BLD.shape[1], rows))


def channel_fir(x_BLD: Tensor, taps_DK: Tensor, past_BPD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Filter every channel with its own few taps (the featurizer; paper section 2).

    Args:
        x_BLD: inputs, float32 or float64.
        taps_DK: one filter a channel, same dtype; tap 0 multiplies the current token.
        past_BPD: the K-1 inputs before the first, oldest first; None is zeros.

    Returns:
        y_BLD and the K-1 inputs before the next call's first.
    """
    num_past = taps_DK.shape[1] - 1
    padded_BSD = _with_past(x_BLD, past_BPD, num_past)
    return _ShiftedSum.apply(padded_BSD, taps_DK), _last_rows(padded_BSD, num_past)


def grouped_fir(x_BLD: Tensor, taps_GK: Tensor, past_BPD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Filter channels that share taps in groups, as products with a banded Toeplitz matrix (paper section 3).

    A block of T outputs needs the W = T+K-1 inputs that end with it: Y = H X with H_ts = h_(t+K-1-s). That is exact for
    every K and T; the paper's two square factors H0 and H1 are the two halves of H, for K = T+1.

    Args:
        x_BLD: inputs, float32 or float64; channel d belongs to group d // (D/G).
        taps_GK: one filter a group, same dtype; tap 0 multiplies the current token.
        past_BPD: the K-1 inputs before the first, oldest first; None is zeros.

    Returns:
        y_BLD and the K-1 inputs before the next call's first.
    """
    B, L, D = x_BLD.shape
    G, K = taps_GK.shape
    padded_BSD = _with_past(x_BLD, past_BPD, K - 1)
    T = min(max(K, _SMALLEST_BLOCK), L)
    num_blocks = -(-L // T)
    missing = num_blocks * T - L
    whole_BSD = torch.nn.functional.pad(padded_BSD, (0, 0, 0, missing)) if missing else padded_BSD
    band_GTW = _band(taps_GK, T)
    seen_BNGCW = whole_BSD.unfold(1, T + K - 1, T).unflatten(2, (G, D // G))
    y_BNTGC = torch.einsum("gtw,bngcw->bntgc", band_GTW, seen_BNGCW)
    return y_BNTGC.reshape(B, num_blocks * T, D)[:, :L], _last_rows(padded_BSD, K - 1)


def _band(taps_GK: Tensor, T: int) -> Tensor:
    """Return H [G, T, T+K-1] with H_ts = h_(t+K-1-s), zero outside the band: every row is the one above, shifted."""
    K = taps_GK.shape[1]
    return torch.nn.functional.pad(taps_GK, (T - 1, T - 1)).unfold(1, T + K - 1, 1).flip(-1)
