"""The state of a model between pieces of a sequence, and what can be done to it row by row.

A state belongs to a batch: one row a sequence. Rows can be picked and repeated (many samples from one prompt), joined
(prompts of different lengths, decoded together) and reset (a document ends, the next begins).
"""

# B rows, S tokens seen, the other letters as in the mixers

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sh2.mixers import AttentionState, KVSlots, MixerState
from sh2.mixers.cache import reserve


class BlockState(NamedTuple):
    """The states of a block's mixer and, where the feed-forward layer mixes tokens too, of that."""

    mixer: MixerState
    feed_forward: MixerState | None = None


ModelState = tuple[BlockState, ...]


def map_state(state: ModelState, change: Callable[[MixerState], MixerState]) -> ModelState:
    """Change the state of every mixer."""
    return tuple(
        BlockState(change(block.mixer), None if block.feed_forward is None else change(block.feed_forward))
        for block in state
    )


def select(state: ModelState, rows: Tensor, *, room: int = 0) -> ModelState:
    """Pick rows by index, in that order; an index may come more than once.

    Args:
        rows: [B'] int64.
        room: tokens that follow, if it is known how many: their keys and values then find room behind those there are.
    """
    return map_state(state, lambda part: _make_room(_select(part, rows.to(part[0].device)), room))


def repeat(state: ModelState, count: int, *, room: int = 0) -> ModelState:
    """The one row of a state, so many times, without a copy: to be continued by `forward`, never by `step`.

    Args:
        room: as in `select`; making it is a copy.
    """
    return map_state(state, lambda part: _make_room(_repeat(part, count), room))


def reset(state: ModelState, rows: Tensor) -> ModelState:
    """Start a new sequence in the rows that are True; the others go on.

    Args:
        rows: [B] bool.
    """
    return map_state(state, lambda part: _reset(part, rows.to(part[0].device)))


def expect(state: ModelState, tokens: int) -> ModelState:
    """Make room for so many tokens that are known to come: the sequences then go on without moving in memory.

    Growing from time to time would take, each time, the old memory and the new of all layers at once.
    """
    return map_state(state, lambda part: _expect(part, tokens) if isinstance(part, AttentionState) else part)


def join(states: Sequence[ModelState]) -> ModelState:
    """Put the rows of several states into one, whatever the lengths of their histories."""
    joined = []
    for blocks in zip(*states, strict=True):
        feed_forwards = [block.feed_forward for block in blocks if block.feed_forward is not None]
        joined.append(
            BlockState(_join([block.mixer for block in blocks]), _join(feed_forwards) if feed_forwards else None)
        )
    return tuple(joined)


def _select(part: MixerState, rows: Tensor) -> MixerState:
    # a cache belongs to one line of continuation: what is picked from it stands for itself
    return type(part)(*(tensor[rows] if isinstance(tensor, Tensor) else None for tensor in part))  # type: ignore[arg-type]


def _repeat(part: MixerState, count: int) -> MixerState:
    def rows(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape[1:])

    return type(part)(*(rows(tensor) if isinstance(tensor, Tensor) else None for tensor in part))  # type: ignore[arg-type]


def _make_room(part: MixerState, tokens: int) -> MixerState:
    if not tokens or not isinstance(part, AttentionState):
        return part
    (keys, values, *units), cache = reserve(part.entries, part.keys_BSJC.shape[1] + tokens, after=0)
    return AttentionState(keys, values, part.begin_B, cache, *units)


def _reset(part: MixerState, rows: Tensor) -> MixerState:
    if isinstance(part, KVSlots):
        return part._replace(end_B=part.end_B.masked_fill(rows, 0))
    if isinstance(part, AttentionState):
        # the past stays in memory and is hidden: entries before `begin` are masked
        seen = part.keys_BSJC.shape[1]
        begin_B = part.begin_B if part.begin_B is not None else torch.zeros_like(rows, dtype=torch.int64)
        return part._replace(begin_B=torch.where(rows, seen, begin_B))
    return type(part)(*(tensor.masked_fill(rows[:, None, None], 0) for tensor in part))


def _expect(part: AttentionState, tokens: int) -> AttentionState:
    tokens += part.keys_BSJC.shape[1]
    if part.cache is not None and part.cache.memory.keys_BSJC.shape[1] >= tokens:
        return part
    (keys, values, *units), cache = reserve(part.entries, tokens)
    return AttentionState(keys, values, part.begin_B, cache, *units)


def _join(parts: Sequence[MixerState]) -> MixerState:
    attentions = [part for part in parts if isinstance(part, AttentionState)]
    if attentions:
        return _join_attention(attentions)
    first, *_ = parts
    return type(first)(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))  # type: ignore[arg-type]


def _join_attention(parts: Sequence[AttentionState]) -> AttentionState:
    """Align the histories at their ends; what is missing in front of a shorter one is hidden."""
    longest = max(part.keys_BSJC.shape[1] for part in parts)
    packed = parts[0].entries.packed
    histories, begins = [], []
    for part in parts:
        B, S = part.keys_BSJC.shape[:2]
        ahead = longest - S
        histories.append(part.entries.as_kept(packed).map(partial(_pad_ahead, ahead)))
        begin_B = part.begin_B
        if begin_B is None:
            begin_B = torch.zeros(B, dtype=torch.int64, device=part.keys_BSJC.device)
        begins.append(begin_B + ahead)
    first, *others = histories
    keys, values, *units = first.map(lambda *rows: torch.cat(rows), *others)
    return AttentionState(keys, values, torch.cat(begins), None, *units)


def _pad_ahead(ahead: int, tensor_BSX: Tensor) -> Tensor:
    return F.pad(tensor_BSX, (0, 0) * (tensor_BSX.ndim - 2) + (ahead, 0))
