"""How a published file orders the rows of its projections, and the permutations to and from our order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sh2.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedLayout:
    """The switches of a published configuration that move rows about and change nothing in the maths."""

    interleave: bool = True  # rows 3i, 3i+1, 3i+2 belong to channel i
    column_split_hyena: bool = False  # post-gate, pre-gate and value alternate by head
    flip: bool = False  # pre-gate before post-gate
    column_split: bool = True  # q, k and v alternate by head
    # published code may bias the projections of attention alone; ours then has biases of zero in hyena blocks
    hyena_input_bias: bool = True


def canonical_layout(config: ModelConfig) -> PublishedLayout:
    """The layout of the Evo 2 files; grouped heads can only be written unsplit."""
    return PublishedLayout(column_split=config.queries_per_kv_head == 1)


def hyena_rows(config: ModelConfig, layout: PublishedLayout) -> Tensor:
    """Row numbers [3D] of a published file in our order: post-gate, pre-gate, value."""
    rows = torch.arange(3 * config.width)
    if layout.interleave:
        rows = rows.view(-1, 3).T.reshape(-1)
    if layout.column_split_hyena:
        rows = rows.view(config.num_heads, 3, config.head_dim).transpose(0, 1).reshape(-1)
    post, pre, value = rows.chunk(3)
    if layout.flip:
        post, pre = pre, post
    return torch.cat([post, pre, value])


def attention_rows(config: ModelConfig, layout: PublishedLayout) -> Tensor:
    """Row numbers of a published file in our order: all q, all k, all v."""
    rows = torch.arange((config.num_heads + 2 * config.num_kv_heads) * config.head_dim)
    if layout.column_split:
        rows = rows.view(config.num_heads, 3, config.head_dim).transpose(0, 1).reshape(-1)
    return rows
