"""The merge of attention to parts of the keys, in plain torch."""

# B batch, L queries, H heads, C channels a head

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_attention(parts_BHLC: Sequence[Tensor], logs_BHL: Sequence[Tensor]) -> Tensor:
    """Weigh the parts by softmax over their logarithms, in float32 or better, rounded once.

    Returns:
        y_BLHC.
    """
    dtype = parts_BHLC[0].dtype
    shares = torch.stack(tuple(logs_BHL)).softmax(dim=0)[..., None]
    wide = torch.promote_types(dtype, torch.float32)
    whole = sum(share * part.to(wide) for share, part in zip(shares, parts_BHLC, strict=True))
    return whole.to(dtype).transpose(1, 2).contiguous()
