"""The merge of attention to parts of the keys: the Triton kernel where it can run, plain torch elsewhere."""

# B batch, L queries, H heads, C channels a head

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.attention_merge import reference
from kernels.backend import Backend, use_triton


def merge_attention(
    parts_BHLC: Sequence[Tensor], logs_BHL: Sequence[Tensor], *, backend: Backend = Backend.AUTO
) -> Tensor:
    """Join attention of the same queries to parts of the keys into attention to all of them; not differentiable.

    Args:
        parts_BHLC: what attention to each part gave.
        logs_BHL: the logarithms of the parts' softmax denominators, float32.

    Returns:
        y_BLHC in the parts' dtype: sums are float32 or better, rounded once.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    if not use_triton(backend, "merge_attention", parts_BHLC[0], _limit(parts_BHLC, logs_BHL)):
        return reference.merge_attention(parts_BHLC, logs_BHL)
    from kernels.attention_merge.merge import merge

    with torch.cuda.device_of(parts_BHLC[0]):
        return merge(parts_BHLC, [log_BHL.contiguous() for log_BHL in logs_BHL])


def _limit(parts_BHLC: Sequence[Tensor], logs_BHL: Sequence[Tensor]) -> str | None:
    first = parts_BHLC[0]
    if any(part.stride() != first.stride() for part in parts_BHLC) or first.stride(3) != 1:
        return "the parts do not lie in memory alike, with the channels of a head side by side"
    if any(log_BHL.dtype is not torch.float32 for log_BHL in logs_BHL):
        return "the logarithms are not float32"
    return None
