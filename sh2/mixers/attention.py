"""Causal multi-head attention with rotary embedding, as a map `(x, state) -> (y, state)`."""

# B batch, L new tokens, T tokens seen before, S = T+L, D width, H heads, J key-value heads, C channels a head

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import attention_append, attention_step, rotate
from sh2.config import ModelConfig, RotaryFrequencies
from sh2.layers import linear
from sh2.mixers.backed import Backed
from sh2.mixers.cache import Entries, KVCache, KVDtype, KVSlots, extend
from sh2.mixers.fused import attend_fused, fits
from sh2.precision import Float32Kept

_MASK_ENTRIES = 1 << 26


class AttentionState(NamedTuple):
    """Rotated keys and values of the tokens seen, and where each row's sequence begins among them.

    Rows of one batch may have histories of different lengths: row b sees entries from `begin_B[b]` on, and its
    positions count from there. None means from 0 for every row. Without gradients, keys and values lie in a cache that
    the next tokens' are written into. Kept in FP8, they are codes (uint8) and have units (float32).
    """

    keys_BSJC: Tensor
    values_BSJC: Tensor
    begin_B: Tensor | None = None
    cache: KVCache | None = None
    key_units_BSJ: Tensor | None = None
    value_units_BSJ: Tensor | None = None

    @property
    def entries(self) -> Entries:
        """What is kept of the tokens seen."""
        return Entries(self.keys_BSJC, self.values_BSJC, self.key_units_BSJ, self.value_units_BSJ)


class Attention(Float32Kept, Backed):
    """Softmax attention over everything before; heads may share keys and values in groups."""

    float32_names = ("inv_freq",)

    inv_freq: Tensor
    kv_dtype: KVDtype = KVDtype.AUTO  # a choice of the machine's, set by `StripedHyena2.use_kv_dtype`; no file has it

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.interpolation = config.rotary_interpolation
        kv_width = self.num_kv_heads * self.head_dim
        self.input = linear(config.width, config.width + 2 * kv_width, bias=config.input_bias)
        self.output = linear(config.width, config.width, bias=config.attention_output_bias)
        # a context extension that sets another base must not be undone by a file's old buffer: only models that are
        # configured to use a file's own values carry them
        stored = config.rotary_frequencies is RotaryFrequencies.STORED
        self.register_buffer("inv_freq", torch.empty(config.head_dim // 2), persistent=stored)

    def forward(self, x_BLD: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        u_BLD, state = self.inner(x_BLD, state)
        return self.output(u_BLD), state

    def inner(self, x_BLD: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        """What `output` projects [B, L, HC], and the state."""
        T = 0 if state is None else state.keys_BSJC.shape[1]
        begin_B = None if state is None else state.begin_B
        positions_BL = torch.arange(T, T + x_BLD.shape[1], device=self.inv_freq.device)[None]
        if begin_B is not None:
            positions_BL = positions_BL - begin_B[:, None]
        q_BLHC, new = self.project(x_BLD, positions_BL)
        # in FP8 the new tokens see each other as later ones will see them: where a sequence is cut changes nothing
        packed = self.kv_dtype is KVDtype.FP8 and not torch.is_grad_enabled()
        entries, cache = new.as_kept(packed), None
        if state is not None:
            entries, cache = extend(state.entries, entries, state.cache)
        if x_BLD.shape[1] == 1 and state is not None and not torch.is_grad_enabled():
            q_BHC = q_BLHC[:, 0] if entries.packed else q_BLHC[:, 0].to(entries.values_BSJC.dtype)
            y_BLHC = attention_step(q_BHC, *entries, begin_B=begin_B, backend=self.backend)[:, None]
        else:
            y_BLHC = attend(q_BLHC, *entries.numbers(x_BLD.dtype), begin_B)
        keys, values, *units = entries
        return y_BLHC.flatten(2), AttentionState(keys, values, begin_B, cache, *units)

    def advance(self, z_BE: Tensor, state: KVSlots) -> Tensor:
        """What lies between the projections, for one token; slots move on: nothing of their size is allocated."""
        keys, values, key_units, value_units = state.entries
        q_BHC = attention_append(
            z_BE,
            self.inv_freq,
            float(self.interpolation),
            keys,
            values,
            key_units,
            value_units,
            state.end_B,
            backend=self.backend,
        )
        y_BHC = attention_step(q_BHC, keys, values, key_units, value_units, end_B=state.end_B, backend=self.backend)
        return y_BHC.flatten(1)

    def project(self, x_BLD: Tensor, positions_BL: Tensor) -> tuple[Tensor, Entries]:
        """Rotated queries [B, L, H, C], and rotated keys and values of tokens at positions_BL, or [1, L]."""
        H, J, C = self.num_heads, self.num_kv_heads, self.head_dim
        q_BLHC, k_BLJC, v_BLJC = self.input(x_BLD).unflatten(-1, (H + 2 * J, C)).split([H, J, J], dim=2)
        angles = (positions_BL.float() / self.interpolation)[:, :, None, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        turn = partial(rotate, cos_BL1P=cos, sin_BL1P=sin, backend=self.backend)
        return turn(q_BLHC), Entries(turn(k_BLJC), v_BLJC)


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Return base^(-2j/C) for j = 0 .. C/2-1, float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return 1.0 / config.rotary_base**exponents


def attend(q_BLHC: Tensor, k_BSJC: Tensor, v_BSJC: Tensor, begin_B: Tensor | None) -> Tensor:
    """Causal attention of the last L of S tokens; row b sees entries from begin_B[b] on.

    Returns:
        y_BLHC in the dtype of v.
    """
    L, S = q_BLHC.shape[1], k_BSJC.shape[1]
    q_BHLC, k_BJSC = (tensor.to(v_BSJC.dtype).transpose(1, 2) for tensor in (q_BLHC, k_BSJC))
    v_BJSC = v_BSJC.transpose(1, 2)
    grouped = q_BHLC.shape[1] != k_BJSC.shape[1]
    if begin_B is None and fits(q_BHLC, k_BJSC):
        return attend_fused(q_BHLC, k_BJSC, v_BJSC)
    whole = partial(F.scaled_dot_product_attention, q_BHLC, k_BJSC, v_BJSC, enable_gqa=grouped)
    # two branches, each with a constant: compiled for any length, `is_causal=L > 1` would be a symbol
    if begin_B is None and L == 1:
        return whole().transpose(1, 2)
    if begin_B is None and L == S:
        return whole(is_causal=True).transpose(1, 2)
    if begin_B is None and _has_lower_right(q_BHLC, grouped):
        from torch.nn.attention.bias import causal_lower_right  # it loads torch's compiler

        return whole(attn_mask=causal_lower_right(L, S)).transpose(1, 2)
    # a mask has as many entries as queries times keys: with a long past, a few queries at a time
    rows = 1 if begin_B is None else len(begin_B)
    step = max(1, _MASK_ENTRIES // (rows * S))
    outputs = [
        F.scaled_dot_product_attention(
            q_BHLC[:, :, first : first + step],
            k_BJSC,
            v_BJSC,
            attn_mask=_mask(S - L + first, min(step, L - first), S, begin_B, q_BHLC.device),
            enable_gqa=grouped,
        )
        for first in range(0, L, step)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _has_lower_right(q_BHLC: Tensor, grouped: bool) -> bool:
    """Whether torch's attention lets few queries look back at many keys without a mask in memory."""
    if not q_BHLC.is_cuda or torch.compiler.is_compiling() or q_BHLC.shape[-1] > 256:
        return False
    # flash attention takes groups but no float32, the memory-efficient one float32 but no groups
    return q_BHLC.dtype in (torch.bfloat16, torch.float16) or (q_BHLC.dtype is torch.float32 and not grouped)


def _mask(first: int, queries: int, S: int, begin_B: Tensor | None, device: torch.device) -> Tensor:
    """bool [B or 1, 1, queries, S]: which of S entries the queries at first, first + 1, ... see."""
    key = torch.arange(S, device=device)
    mask = key[None, None, None, :] <= key[first : first + queries, None]
    return mask if begin_B is None else mask & (key >= begin_B[:, None, None, None])
