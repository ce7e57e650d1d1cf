"""Peers that compute something else: attention, linear attention, state-space models of the same width.

Each is the core operator alone, after its projections, and is checked against its own plain definition.
"""

# B batch, L length, D width, H heads, K size of a key, V size of a value

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention, softplus

from sh2.bench.cases import Case, Draw, Outputs, Problem
from sh2.bench.imports import import_alone
from sh2.errors import Sh2Error

HEAD = 128
ATTENTION_CHECK_LENGTH = 515
RECURRENT_CHECK_LENGTH = 131  # the plain recurrence keeps a matrix a head for every token
_MAMBA_HEAD, _MAMBA_STATE, _MAMBA_CHUNK = 64, 128, 256


def attention(backend: str) -> Callable[[Case], Problem]:
    """Causal softmax attention, heads of 128, by one of torch's backends."""

    def make(case: Case) -> Problem:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = getattr(SDPBackend, backend)

        def call(*qkv_BLHK: Tensor) -> Outputs:
            q_BHLK, k_BHLK, v_BHLK = (tensor.transpose(1, 2) for tensor in qkv_BLHK)
            with sdpa_kernel(chosen):
                return (scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True),)

        return Problem(inputs=_qkv(Draw(case)), call=call, definition=_softmax_attention)

    return make


def linear(rule: str, *, decays: int = 0, beta: bool = False) -> Callable[[Case], Problem]:
    """A chunked operator of flash-linear-attention, by the name of its rule, heads of 128.

    Args:
        decays: dimensions of the decay: 3 is one a head, 4 one a channel of the keys, 0 none.
        beta: whether it is a delta rule; keys then have length one, and beta lies in (0, 1).
    """

    def make(case: Case) -> Problem:
        chunked = getattr(import_alone(f"fla.ops.{rule}"), f"chunk_{rule}")
        draw = Draw(case)
        inputs = _qkv(draw, unit_keys=beta)
        shape = inputs["k"].shape
        if decays:
            inputs["log_decay"] = logsigmoid(draw.normal(*shape[:decays]).float() + 2)
        if beta:
            inputs["beta"] = draw.normal(*shape[:3]).sigmoid()
        return Problem(
            inputs=inputs,
            call=lambda *tensors: (chunked(*tensors)[0],),
            definition=lambda *tensors: _recurrence(**dict(zip(inputs, tensors, strict=True)), scale=HEAD**-0.5),
        )

    return make


def mamba2(case: Case) -> Problem:
    """Mamba-2's SSD from mamba-ssm: heads of 64, 128 states, B and C shared by all heads, chunks of 256."""
    scan = import_alone("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    draw, heads = Draw(case), _heads(case, _MAMBA_HEAD)
    shared = case.batch, case.length, 1, _MAMBA_STATE

    def plain(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Outputs:
        q, k = (tensor.expand(-1, -1, heads, -1) for tensor in (c, b))
        return _recurrence(q, k, x * dt[..., None], log_decay=dt * a)

    return Problem(
        inputs={
            "x": draw.normal(case.batch, case.length, heads, _MAMBA_HEAD),
            "dt": softplus(draw.normal(case.batch, case.length, heads) - 2),
            "A": -draw.uniform(heads, low=0.1, high=1),
            "B": draw.normal(*shared, scale=_MAMBA_STATE**-0.5),
            "C": draw.normal(*shared, scale=_MAMBA_STATE**-0.5),
        },
        call=lambda *inputs: (scan(*inputs, _MAMBA_CHUNK),),
        definition=plain,
    )


def _heads(case: Case, size: int) -> int:
    if case.width % size:
        raise Sh2Error(f"a width of {case.width} is no whole number of heads of {size}")
    return case.width // size


def _qkv(draw: Draw, *, unit_keys: bool = False) -> dict[str, Tensor]:
    case = draw.case
    q, k, v = (draw.normal(case.batch, case.length, _heads(case, HEAD), HEAD) for _ in range(3))
    return {"q": q, "k": normalize(k, dim=-1) if unit_keys else k, "v": v}


def _softmax_attention(*qkv_BLHK: Tensor) -> Outputs:
    q_BHLK, k_BHLK, v_BHLK = (tensor.transpose(1, 2) for tensor in qkv_BLHK)
    scores_BHLL = q_BHLK @ k_BHLK.mT / math.sqrt(q_BHLK.shape[-1])
    future_LL = torch.ones_like(scores_BHLL[0, 0], dtype=torch.bool).triu(1)
    return (scores_BHLL.masked_fill(future_LL, -math.inf).softmax(-1) @ v_BHLK,)


def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1, log_decay: Tensor | None = None, beta: Tensor | None = None
) -> Outputs:
    """What they all compute: S_t = decay_t S_(t-1) + k_t u_t, y_t = scale q_t S_t; u_t is v_t, or for a delta rule
    beta_t (v_t - k_t decay_t S_(t-1)).

    q and k are [B, L, H, K], v is [B, L, H, V], log_decay [B, L, H] or [B, L, H, K], beta [B, L, H].
    """
    B, L, H, K = q.shape
    state_BHKV = q.new_zeros(B, H, K, v.shape[-1])
    rows = []
    for t in range(L):
        u_BHV = v[:, t]
        if log_decay is not None:
            state_BHKV = state_BHKV * log_decay[:, t].reshape(B, H, -1, 1).exp()
        if beta is not None:
            u_BHV = beta[:, t, :, None] * (u_BHV - torch.einsum("bhk,bhkv->bhv", k[:, t], state_BHKV))
        state_BHKV = state_BHKV + k[:, t, :, :, None] * u_BHV[:, :, None]
        rows.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state_BHKV))
    return (torch.stack(rows, dim=1),)
