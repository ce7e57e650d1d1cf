"""Attention by fused kernels that have a causal mask for as many queries as keys only: a past is taken by itself.

On GPUs from Hopper on they are cuDNN's, which take about half the time of torch's flash attention. But every new size
costs a tenth of a second of planning: sizes are multiples of 1,024, and a past is taken in blocks whose sizes are
powers of two, so few plans serve sequences of any length. On a CPU they are torch's, in half the time that they take
with a mask in memory; there a past is one block.
"""

# B batch, L new tokens, T tokens seen before, S = T+L, H heads, J key-value heads, C channels a head

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from kernels import constant, merge_attention

_UNIT = 1024
_MOST_CHANNELS = 128
_HOPPER = 9  # major number of its compute capability


def fits(q_BHLC: Tensor, k_BJSC: Tensor) -> bool:
    """Whether `attend_fused` takes these queries and keys, and is the fastest that does."""
    (H, L, C), (J, S) = q_BHLC.shape[1:], k_BJSC.shape[1:3]
    if q_BHLC.device.type == "cpu":
        return 1 < L < S and H == J and not torch.is_grad_enabled()
    sizes = L % _UNIT == 0 and S % _UNIT == 0 and C % 8 == 0 and C <= _MOST_CHANNELS
    gradients = torch.is_grad_enabled() and (S > L or H > J)  # these have none here, or none for heads in groups
    return sizes and not gradients and q_BHLC.is_cuda and q_BHLC.dtype.itemsize == 2 and _available(q_BHLC.device)


def attend_fused(q_BHLC: Tensor, k_BJSC: Tensor, v_BJSC: Tensor) -> Tensor:
    """Causal attention of the last L of S tokens.

    Returns:
        y_BLHC in the dtype of v.
    """
    past = k_BJSC.shape[2] - q_BHLC.shape[2]
    y_BHLC, log_BHL = _attend(q_BHLC, k_BJSC[:, :, past:], v_BJSC[:, :, past:], causal=True)
    if not past:
        return y_BHLC.transpose(1, 2)
    cut = blocks(past) if _plans(q_BHLC.device) else [slice(0, past)]
    parts = [_attend(q_BHLC, k_BJSC[:, :, block], v_BJSC[:, :, block], causal=False) for block in cut]
    return merge_attention(*zip((y_BHLC, log_BHL), *parts, strict=True))


def blocks(past: int) -> Iterator[slice]:
    """Cut a past into blocks of falling powers of two."""
    start = 0
    while start < past:
        size = 1 << (past - start).bit_length() - 1
        yield slice(start, start + size)
        start += size


def _plans(device: torch.device) -> bool:
    """Whether new sizes cost planning."""
    return device.type != "cpu"


def _attend(q_BHLC: Tensor, k_BJSC: Tensor, v_BJSC: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The outputs, and the logarithms of the softmax's denominators log_BHL, float32."""
    if q_BHLC.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHLC, k_BJSC, v_BJSC, 0.0, causal)
    y_BHLC, log_BHL1, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q_BHLC, k_BJSC, v_BJSC, None, True, 0.0, causal, False
    )
    return y_BHLC, log_BHL1.squeeze(-1)


@constant
def _available(device: torch.device) -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled() and _new_enough(device)


@cache
def _new_enough(device: torch.device) -> bool:
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(device)[0] >= _HOPPER
