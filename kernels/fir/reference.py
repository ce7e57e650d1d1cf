"""Causal FIR filters in plain torch: y_t = sum_k h_k x_(t-k), tap 0 on the current token.

The state is the last K-1 inputs, zeros at the start of a sequence, so a short prompt needs no case of its own.
"""

# B batch, L length, D channels, G filter groups, C channels a group, K taps, P = K-1 past inputs
# T block of tokens, W = T+K-1 inputs that a block sees, X blocks of all sequences

from typing import Any

import torch
from torch import Tensor

# rows of the banded Toeplitz matrix for short filters: at least this many, or the products are too thin to be fast
_SMALLEST_BLOCK = 16
_ONEDNN = torch.backends.mkldnn.is_available()  # read once: a graph cannot ask
_LEAST_ROWS = 32  # from which on oneDNN's convolution is faster than a few sums
_MOST_TAPS = 14  # up to which its gradient of the taps is


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
        # the graph that torch 2.11 makes of sums in place has no gradients
        add = torch.addcmul if torch.compiler.is_compiling() else Tensor.addcmul_
        for k in range(1, K):
            y_BLD = add(y_BLD, padded_BSD[:, K - 1 - k : K - 1 - k + L], taps_DK[:, k])
        return y_BLD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        padded_BSD, taps_DK = ctx.saved_tensors
        (grad_BLD,) = grads
        K, L = taps_DK.shape[1], grad_BLD.shape[1]
        grad_padded_BSD = torch.zeros_like(padded_BSD)
        grad_taps_KD = torch.zeros_like(taps_DK.mT)
        for k in range(K):
            seen = slice(K - 1 - k, K - 1 - k + L)
            grad_padded_BSD[:, seen].addcmul_(grad_BLD, taps_DK[:, k])
            grad_taps_KD[k] = (grad_BLD * padded_BSD[:, seen]).sum(dim=(0, 1))
        return grad_padded_BSD, grad_taps_KD.mT


class _Convolution(torch.autograd.Function):
    """oneDNN's convolution of single channels, in float32 on a CPU: one pass over memory, several times as fast.

    It takes channels last, which is how a sequence lies in memory.
    """

    @staticmethod
    def forward(ctx: Any, padded_BSD: Tensor, taps_GK: Tensor) -> Tensor:
        ctx.save_for_backward(padded_BSD, taps_GK)
        y_BD1L = torch.nn.functional.conv2d(
            _as_image(padded_BSD), _as_filters(taps_GK, D := padded_BSD.shape[2]), groups=D
        )
        return y_BD1L.squeeze(2).mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        padded_BSD, taps_GK = ctx.saved_tensors
        (G, K), D = taps_GK.shape, padded_BSD.shape[2]
        grad_BLD = grads[0].contiguous()
        few = K <= _MOST_TAPS
        image_BD1S, filters_D11K, _ = torch.ops.aten.convolution_backward(
            _as_image(grad_BLD), _as_image(padded_BSD), _as_filters(taps_GK, D), None, [1, 1], [0, 0], [1, 1], False,
            [0, 0], D, [True, few, False],
        )  # fmt: skip
        if few:
            grad_taps_GK = filters_D11K.view(G, D // G, K).sum(dim=1).flip(1)
        else:
            grad_taps_GK = _grad_taps(grad_BLD, padded_BSD, G, K)
        return image_BD1S.squeeze(2).mT, grad_taps_GK


def _as_image(x_BLD: Tensor) -> Tensor:
    return x_BLD.mT.unsqueeze(2)


def _as_filters(taps_GK: Tensor, channels: int) -> Tensor:
    """A filter for each channel [D, 1, 1, K], the oldest input's tap first."""
    return taps_GK.flip(1).repeat_interleave(channels // taps_GK.shape[0], dim=0)[:, None, None]


def _by_onednn(x_BLD: Tensor) -> bool:
    here = x_BLD.device.type == "cpu" and x_BLD.dtype is torch.float32 and _ONEDNN
    return here and x_BLD.shape[1] >= _LEAST_ROWS


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
    convolution = _Convolution if _by_onednn(x_BLD) else _ShiftedSum
    return convolution.apply(padded_BSD, taps_DK), _last_rows(padded_BSD, num_past)


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
    if _by_onednn(x_BLD):
        return _Convolution.apply(padded_BSD, taps_GK), _last_rows(padded_BSD, K - 1)
    T = _block(L, K)
    y_BNTGC = torch.einsum("gtw,bngcw->bntgc", _band(taps_GK, T), _seen(padded_BSD, G, K, T))
    return y_BNTGC.reshape(B, -1, D)[:, :L], _last_rows(padded_BSD, K - 1)


def _block(length: int, taps: int) -> int:
    return min(max(taps, _SMALLEST_BLOCK), length)


def _seen(padded_BSD: Tensor, G: int, K: int, T: int) -> Tensor:
    """The W = T+K-1 inputs that each block of T outputs sees, zeros after the last: [B, blocks, G, D/G, W]."""
    missing = -(padded_BSD.shape[1] - K + 1) % T
    whole_BSD = torch.nn.functional.pad(padded_BSD, (0, 0, 0, missing)) if missing else padded_BSD
    return whole_BSD.unfold(1, T + K - 1, T).unflatten(2, (G, -1))


def _grad_taps(grad_BLD: Tensor, padded_BSD: Tensor, G: int, K: int) -> Tensor:
    """The gradient [G, K] of taps, from that of the banded Toeplitz matrix: a tap is a diagonal of it."""
    L = grad_BLD.shape[1]
    T = _block(L, K)
    grad_BNTGC = torch.nn.functional.pad(grad_BLD, (0, 0, 0, -L % T)).unflatten(1, (-1, T)).unflatten(3, (G, -1))
    band_GTW = torch.einsum("bntgc,bngcw->gtw", grad_BNTGC, _seen(padded_BSD, G, K, T)).contiguous()
    W = T + K - 1
    return band_GTW.as_strided((G, T, K), (T * W, W + 1, 1)).sum(dim=1).flip(1)


def _band(taps_GK: Tensor, T: int) -> Tensor:
    """Return H [G, T, T+K-1] with H_ts = h_(t+K-1-s), zero outside the band: every row is the one above, shifted."""
    K = taps_GK.shape[1]
    return torch.nn.functional.pad(taps_GK, (T - 1, T - 1)).unfold(1, T + K - 1, 1).flip(-1)
