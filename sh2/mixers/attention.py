"""Causal multi-head attention with rotary embedding, as a map `(x, state) -> (y, state)`."""

# B batch, L new tokens, T tokens seen before, S = T+L, D width, H heads, J key-value heads, C channels a head

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sh2.config import ModelConfig, RotaryFrequencies
from sh2.layers import linear
from sh2.mixers.cache import KVCache, extend
from sh2.precision import Float32Kept

_MASK_ENTRIES = 1 << 26


class AttentionState(NamedTuple):
    """Rotated keys and values of the tokens seen, and where each row's sequence begins among them.

    Rows of one batch may have histories of different lengths: row b sees entries from `begin_B[b]` on, and its
    positions count from there. None means from 0 for every row. Without gradients, keys and values lie in a cache that
    the next tokens' are written into.
    """

    keys_BSJC: Tensor
    values_BSJC: Tensor
    begin_B: Tensor | None = None
    cache: KVCache | None = None


class Attention(Float32Kept):
    """Softmax attention over everything before; heads may share keys and values in groups."""

    float32_names = ("inv_freq",)

    inv_freq: Tensor

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
        self.register_buffer("inv_freq", rotary_frequencies(config), persistent=stored)

    def forward(self, x_BLD: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        H, J, C = self.num_heads, self.num_kv_heads, self.head_dim
        q_BLHC, k_BLJC, v_BLJC = self.input(x_BLD).unflatten(-1, (H + 2 * J, C)).split([H, J, J], dim=2)
        T = 0 if state is None else state.keys_BSJC.shape[1]
        begin_B = None if state is None else state.begin_B
        angles = self._angles(T, x_BLD.shape[1], begin_B)
        q_BLHC, k_BLJC = rotate(q_BLHC, *angles), rotate(k_BLJC, *angles)
        cache = None
        if state is not None:
            k_BLJC, v_BLJC, cache = extend(state.keys_BSJC, state.values_BSJC, k_BLJC, v_BLJC, state.cache)
        y_BLHC = attend(q_BLHC, k_BLJC, v_BLJC, begin_B)
        return self.output(y_BLHC.flatten(2)), AttentionState(k_BLJC, v_BLJC, begin_B, cache)

    def step(self, x_B1D: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """`forward` for one token: keys and values grow in place there too."""
        return self.forward(x_B1D, state)

    def _angles(self, T: int, L: int, begin_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B or 1, L, 1, C/2] of the new tokens' positions, float32."""
        positions = torch.arange(T, T + L, device=self.inv_freq.device)[None]
        if begin_B is not None:
            positions = positions - begin_B[:, None]
        angles = (positions.float() / self.interpolation)[:, :, None, None] * self.inv_freq
        return angles.cos(), angles.sin()


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Return base^(-2j/C) for j = 0 .. C/2-1, float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return 1.0 / config.rotary_base**exponents


def rotate(x_BLHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (j, j + C/2) of every head by the position's angles, in float32 or better, rounded once."""
    a, b = x_BLHC.to(torch.promote_types(x_BLHC.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x_BLHC.dtype)


def attend(q_BLHC: Tensor, k_BSJC: Tensor, v_BSJC: Tensor, begin_B: Tensor | None) -> Tensor:
    """Causal attention of the last L of S tokens; row b sees entries from begin_B[b] on.

    Returns:
        y_BLHC in the dtype of v.
    """
    L, S = q_BLHC.shape[1], k_BSJC.shape[1]
    q_BHLC, k_BJSC = (tensor.to(v_BSJC.dtype).transpose(1, 2) for tensor in (q_BLHC, k_BSJC))
    v_BJSC = v_BSJC.transpose(1, 2)
    grouped = q_BHLC.shape[1] != k_BJSC.shape[1]
    whole = partial(F.scaled_dot_product_attention, q_BHLC, k_BJSC, v_BJSC, enable_gqa=grouped)
    # two branches, each with a constant: compiled for any length, `is_causal=L > 1` would be a symbol
    if begin_B is None and L == 1:
        return whole().transpose(1, 2)
    if begin_B is None and L == S:
        return whole(is_causal=True).transpose(1, 2)
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


def _mask(first: int, queries: int, S: int, begin_B: Tensor | None, device: torch.device) -> Tensor:
    """bool [B or 1, 1, queries, S]: which of S entries the queries at first, first + 1, ... see."""
    key = torch.arange(S, device=device)
    mask = key[None, None, None, :] <= key[first : first + queries, None]
    return mask if begin_B is None else mask & (key >= begin_B[:, None, None, None])
