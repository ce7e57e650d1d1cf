"""Decoding at the speed of memory: rows go on together, a token at a time, in memory that stays where it is.

A step reads where each row stands from the device and writes there, so it is the same step whatever the rows hold. On a
GPU it is recorded as a CUDA graph and replayed: one launch a token. Elsewhere the same step runs as it is.

Knows nothing of sampling.
"""

# R rows, S places of the memory for keys and values, V vocabulary

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from sh2.devices.placement import free_bytes
from sh2.mixers import Attention, AttentionState, FirState, KVDtype, KVSlots, MixerState, ModalState
from sh2.mixers.cache import lengthened
from sh2.model import StripedHyena2
from sh2.state import ModelState, map_state, select

log = logging.getLogger(__name__)

_SPARE = 65_536  # tokens of all rows together that there is room for beyond what they hold, at least
_EAGER_STEPS = 2  # before a step is recorded: they compile kernels and fill caches, which a recording must not
_HARDLY_FREE = 0.7  # of free memory: the rest is for prompts that are read, and for memory that moves


class Decoder:
    """Rows of a batch, each in a slot: put in with a state, moved on together, and taken out one by one.

    Call everything in inference mode.

    logits_RV: what follows each row's last token, in the model's dtype; a step writes it in place.
    """

    def __init__(self, model: StripedHyena2, rows: int) -> None:
        weight = model.embedding.weight
        self.model, self.rows, self.device = model, rows, weight.device
        self.logits_RV = torch.zeros(rows, model.config.vocab_size, dtype=weight.dtype, device=self.device)
        # a model on several devices, or whose weights come and go, cannot be recorded
        self.records = self.device.type == "cuda" and all(one.device == self.device for one in model.parameters())
        self._ids_R = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._state: ModelState = ()
        self._places = 0  # of the memory for keys and values, where there is any
        self._lengths: dict[int, int] = {}  # tokens of every row, by its slot
        self._most: dict[int, int] = {}  # that it may come to
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0

    def put(
        self,
        places: Mapping[int, int],
        state: ModelState,
        logits_BV: Tensor,
        *,
        length: int,
        most: int,
        give: bool = False,
    ) -> None:
        """Start rows from a state.

        Args:
            places: which row of the state goes into each slot.
            state: of rows that all hold `length` tokens; logits_BV: what follows them.
            most: tokens that these rows may come to, with those they have.
            give: the state is not used again, so that its memory may be taken over.
        """
        for slot in places:
            self._lengths[slot], self._most[slot] = length, most
        identity = list(places.items()) == [(row, row) for row in range(self.rows)]
        if not self._state:
            take_over = give and identity and len(logits_BV) == self.rows
            self._state = map_state(state, lambda part: _slots_like(part, self.rows, self._room(), take_over=take_over))
            self._places = min(_places(self._state), default=1 << 62)
        self._make_room()
        for mine, theirs in zip(_parts(self._state), _parts(state), strict=True):
            _fill(mine, theirs, places, length)
        slots, sources = (torch.tensor(list(some), device=self.device) for some in (places, places.values()))
        self.logits_RV[slots] = logits_BV[sources]

    def take_out(self, slot: int) -> None:
        """Let a slot be: its row ends, and what steps do there means nothing."""
        del self._lengths[slot], self._most[slot]

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with these slots alone, in that order, in less memory."""
        self._graph, self._eager_steps = None, 0
        picked = torch.tensor(slots, device=self.device)
        self.rows = len(slots)
        self._state = select(self._state, picked)
        self.logits_RV, self._ids_R = self.logits_RV[picked], self._ids_R[picked]
        for kept in (self._lengths, self._most):
            moved = {new: kept[old] for new, old in enumerate(slots) if old in kept}
            kept.clear()
            kept.update(moved)

    def step(self, ids_R: Tensor) -> None:
        """Move every row on by a token; `logits_RV` is then what follows it."""
        for slot in self._lengths:
            self._lengths[slot] += 1
        self._make_room()
        self._ids_R.copy_(ids_R)
        if self.records and self._graph is None and self._eager_steps >= _EAGER_STEPS:
            self._record()
        if self._graph is None:
            self._eager_steps += 1
            self._run()
        else:
            self._graph.replay()

    def _run(self) -> None:
        logits_RV, _ = self.model.step(self._ids_R, self._state)
        self.logits_RV.copy_(logits_RV)

    def _record(self) -> None:
        """Record a step. Nothing runs: what is recorded is what eager steps did, on the same memory."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=_recording_stream(self.device)):
                self._run()
        except RuntimeError as error:
            self.records = False
            log.warning("decoding launches every kernel of a step: it could not be recorded as a CUDA graph: %s", error)
            return
        self._graph = graph

    def _make_room(self) -> None:
        """See to it that the rows have places for their tokens."""
        if self._places >= max(self._lengths.values(), default=0):
            return
        self._graph, self._eager_steps = None, 0
        room, blocks, self._state = self._room(), list(self._state), ()
        for layer in range(len(blocks)):  # one at a time: the memory that a layer leaves is free for the next
            (blocks[layer],) = map_state((blocks[layer],), lambda part: _longer(part, room))
        self._state, self._places = tuple(blocks), room

    def _room(self) -> int:
        """Places for every row: an eighth more than the longest needs, or some, but no more than it may come to."""
        needed = max(self._lengths.values())
        return max(needed, min(max(self._most.values()), needed + max(needed // 8, _SPARE // self.rows)))


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: products take memory for each stream that they ran on, and keep it."""
    return torch.cuda.Stream(device)


def affordable_rows(model: StripedHyena2, tokens: int, most: int) -> int:
    """Return how many rows of so many tokens a GPU's free memory holds the keys and values of, in 1..most."""
    weight = model.embedding.weight
    if weight.device.type != "cuda":
        return most
    config = model.config
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    packed = any(layer.kv_dtype is KVDtype.FP8 for layer in layers)
    of_a_head = config.head_dim + 4 if packed else config.head_dim * weight.element_size()
    of_a_row = max(1, 2 * len(layers) * config.num_kv_heads * of_a_head * tokens)
    return max(1, min(most, int(free_bytes(weight.device) * _HARDLY_FREE) // of_a_row))


def _parts(state: ModelState) -> Iterator[MixerState]:
    for block in state:
        yield from (part for part in block if part is not None)


def _places(state: ModelState) -> Iterator[int]:
    return (part.keys_BSJC.shape[1] for part in _parts(state) if isinstance(part, KVSlots))


def _slots_like(part: MixerState, rows: int, room: int, *, take_over: bool) -> MixerState:
    """Memory for so many rows of what a state holds; taken over, that of the state itself."""
    if isinstance(part, FirState | ModalState):
        return type(part)(*(tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in part))
    assert isinstance(part, AttentionState)
    end_B = torch.zeros(rows, dtype=torch.int64, device=part.keys_BSJC.device)
    if take_over and part.cache is not None:
        return KVSlots.of(part.cache.memory, end_B)
    # zeros: what a row does not have is weighed with zero, and must be a number
    return KVSlots.of(part.entries.map(lambda tensor: tensor.new_zeros(rows, room, *tensor.shape[2:])), end_B)


def _longer(part: MixerState, room: int) -> MixerState:
    if not isinstance(part, KVSlots):
        return part
    return KVSlots.of(part.entries.map(lambda tensor: lengthened(tensor, room)), part.end_B)


def _fill(mine: MixerState, theirs: MixerState, places: Mapping[int, int], length: int) -> None:
    """Copy rows of a state into slots."""
    if isinstance(mine, KVSlots):
        assert isinstance(theirs, AttentionState)
        assert theirs.begin_B is None
        taken_over = theirs.cache is not None and theirs.cache.memory.keys_BSJC is mine.keys_BSJC
        for slot, source in places.items():
            mine.end_B[slot] = length
            if not taken_over:
                for memory, past in zip(mine.entries.tensors(), theirs.entries.tensors(), strict=True):
                    memory[slot, :length] = past[source]
        return
    assert isinstance(mine, FirState | ModalState)
    slots, sources = (torch.tensor(list(some), device=mine[0].device) for some in (places, places.values()))
    assert type(theirs) is type(mine)
    for tensor, past in zip(mine, cast(tuple[Tensor, ...], theirs), strict=True):
        tensor[slots] = past[sources]
