"""Attention of some queries to some keys, whose softmax others will share: the outputs with their denominators.

Torch's fused kernels where there are any: on the CPU, and on CUDA for 16-bit numbers. Elsewhere plain torch, in memory
for all pairs of queries and keys.
"""

# B batch, Q queries, S keys, H heads, J key-value heads, c channels a head

import torch
from torch import Tensor

_aten = torch.ops.aten


def attend(q_BHQc: Tensor, k_BJSc: Tensor, v_BJSc: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return y_BHQc, and the logarithms of the softmax's denominators m_BHQ in float32 or better."""
    q, k, v = q_BHQc.contiguous(), *_expanded(q_BHQc.shape[1], k_BJSc, v_BJSc)
    if q.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    if _fused(q):
        y_BHQc, m_BHQ, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        return y_BHQc, m_BHQ
    return plain(q, k, v, causal=causal)


def attend_backward(
    dy_BHQc: Tensor, q_BHQc: Tensor, k_BJSc: Tensor, v_BJSc: Tensor, y_BHQc: Tensor, m_BHQ: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v. Outputs and denominators are those of all keys that the queries see."""
    J = k_BJSc.shape[1]
    dy, q, y, m = (tensor.contiguous() for tensor in (dy_BHQc, q_BHQc, y_BHQc, m_BHQ))
    k, v = _expanded(q.shape[1], k_BJSc, v_BJSc)
    if q.device.type == "cpu":
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(dy, q, k, v, y, m, 0.0, causal)
    elif _fused(q):
        unused = torch.empty((), dtype=torch.int64, device=q.device)  # the state of a dropout's random numbers
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            dy, q, k, v, y, m, None, None, q.shape[2], k.shape[2], 0.0, causal, unused, unused
        )
    else:
        dq, dk, dv = plain_backward(dy, q, k, v, y, m, causal=causal)
    return dq, *(tensor.unflatten(1, (J, -1)).sum(dim=2) for tensor in (dk, dv))


def plain(q_BHQc: Tensor, k_BHSc: Tensor, v_BHSc: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """`attend` in plain torch; keys and values have as many heads as queries."""
    scores_BHQS = _scores(q_BHQc, k_BHSc, causal)
    m_BHQ = scores_BHQS.logsumexp(dim=-1)
    return (scores_BHQS - m_BHQ[..., None]).exp().to(v_BHSc.dtype) @ v_BHSc, m_BHQ


def plain_backward(
    dy_BHQc: Tensor, q_BHQc: Tensor, k_BHSc: Tensor, v_BHSc: Tensor, y_BHQc: Tensor, m_BHQ: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` in plain torch; keys and values have as many heads as queries."""
    wide = torch.promote_types(q_BHQc.dtype, torch.float32)
    dy, q, k, v, y = (tensor.to(wide) for tensor in (dy_BHQc, q_BHQc, k_BHSc, v_BHSc, y_BHQc))
    p_BHQS = (_scores(q, k, causal) - m_BHQ[..., None]).exp()
    dscores_BHQS = p_BHQS * (dy @ v.mT - (dy * y).sum(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5
    return dscores_BHQS @ k, dscores_BHQS.mT @ q, p_BHQS.mT @ dy


def _expanded(heads: int, *tensors_BJSc: Tensor) -> tuple[Tensor, ...]:
    """Repeat key-value heads for the queries that share them."""
    return tuple(tensor.repeat_interleave(heads // tensor.shape[1], dim=1).contiguous() for tensor in tensors_BJSc)


def _fused(q_BHQc: Tensor) -> bool:
    channels = q_BHQc.shape[-1]
    return q_BHQc.is_cuda and q_BHQc.dtype.itemsize == 2 and channels % 8 == 0 and channels <= 256


def _scores(q_BHQc: Tensor, k_BHSc: Tensor, causal: bool) -> Tensor:
    wide = torch.promote_types(q_BHQc.dtype, torch.float32)
    scores_BHQS = (q_BHQc.to(wide) @ k_BHSc.to(wide).mT) * q_BHQc.shape[-1] ** -0.5
    if causal:
        later_QS = torch.ones(scores_BHQS.shape[2:], dtype=torch.bool, device=scores_BHQS.device).triu(1)
        scores_BHQS = scores_BHQS.masked_fill(later_QS, -torch.inf)
    return scores_BHQS
