"""Memory for keys and values: growing behind a sequence, or standing still under rows that are decoded together.

In FP8, a number is an E4M3 code, kept as a byte, times a unit of its token and head: nothing of a token's depends on
others, so that no cut of a sequence and no batch mate changes what is kept.
"""

# B batch, S tokens seen, L new tokens, J key-value heads, C channels a head

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple, Self

import torch
from torch import Tensor

from kernels import pack, unpack

_STEP = 256  # tokens: a cache is a multiple of these long, and at least an eighth longer than what it must hold
_AFTER = 1024  # tokens that there is room for behind a sequence whose length is known


class KVDtype(StrEnum):
    """In which numbers keys and values are kept."""

    AUTO = "auto"  # the model's
    FP8 = "fp8"  # half the memory of bfloat16


class Entries(NamedTuple):
    """Keys and values of some tokens: numbers, or with units, codes."""

    keys_BSJC: Tensor
    values_BSJC: Tensor
    key_units_BSJ: Tensor | None = None
    value_units_BSJ: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether they are in FP8."""
        return self.key_units_BSJ is not None

    def as_kept(self, packed: bool) -> Self:
        """The same in FP8, or as numbers."""
        if packed == self.packed:
            return self
        if packed:
            (keys, key_units), (values, value_units) = pack(self.keys_BSJC), pack(self.values_BSJC)
            return type(self)(keys, values, key_units, value_units)
        return type(self)(*self.numbers())

    def numbers(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Keys and values as numbers: those in FP8 in this dtype, the others in their own."""
        if self.key_units_BSJ is None or self.value_units_BSJ is None:
            return self.keys_BSJC, self.values_BSJC
        keys = unpack(self.keys_BSJC, self.key_units_BSJ, dtype)
        return keys, unpack(self.values_BSJC, self.value_units_BSJ, dtype)

    def tensors(self) -> Iterator[Tensor]:
        """The two or four of them."""
        return (tensor for tensor in self if tensor is not None)

    def map(self, change: Callable[..., Tensor], *others: "Entries") -> Self:
        """Change every tensor, with that of the same name of the others."""
        rows = zip(self.tensors(), *(other.tensors() for other in others), strict=True)
        return type(self)(*(change(*row) for row in rows))


class KVCache:
    """Keys and values of one line of continuation, in memory for more of them than there are.

    States are values: a state may be continued twice. So who continues a state writes behind it only where nobody has
    yet; otherwise the tokens seen are copied first.
    """

    def __init__(self, seen: Entries, capacity: int) -> None:
        self.memory = seen.map(lambda tensor: lengthened(tensor, capacity))
        self._used = seen.keys_BSJC.shape[1]

    def takes(self, seen: int, new: Entries) -> bool:
        """Whether the place behind the first `seen` tokens is nobody's, and these fit there as they are."""
        keys = self.memory.keys_BSJC
        # what was made in inference mode can be written in inference mode only
        writable = torch.is_inference_mode_enabled() or not keys.is_inference()
        fits = seen + new.keys_BSJC.shape[1] <= keys.shape[1] and new.keys_BSJC.dtype is keys.dtype
        return self._used == seen and fits and writable

    def append(self, new: Entries) -> Entries:
        """Write new ones behind those there are; return all of them, without a copy."""
        start, self._used = self._used, self._used + new.keys_BSJC.shape[1]

        def write(memory: Tensor, more: Tensor) -> Tensor:
            memory[:, start : self._used] = more
            return memory[:, : self._used]

        return self.memory.map(write, new)


def lengthened(tensor_BSX: Tensor, capacity: int) -> Tensor:
    """A copy with room for so many tokens, zeros where there are none yet."""
    longer = tensor_BSX.new_empty(tensor_BSX.shape[0], capacity, *tensor_BSX.shape[2:])
    longer[:, : tensor_BSX.shape[1]] = tensor_BSX
    longer[:, tensor_BSX.shape[1] :] = 0
    return longer


def extend(seen: Entries, new: Entries, cache: KVCache | None) -> tuple[Entries, KVCache | None]:
    """Put new keys and values behind those seen: in the cache while no gradients are kept, else by a copy.

    Returns:
        All of them, and the cache that they lie in, if they do.
    """
    seen = seen.as_kept(new.packed)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return seen.map(lambda *pair: torch.cat(pair, dim=1), new), None
    length = seen.keys_BSJC.shape[1]
    if cache is None or not cache.takes(length, new):
        wide = seen.map(lambda one, other: one.to(torch.promote_types(one.dtype, other.dtype)), new)
        cache = KVCache(wide, capacity(length + new.keys_BSJC.shape[1]))
    return cache.append(new), cache


def reserve(seen: Entries, tokens: int, *, after: int = _AFTER) -> tuple[Entries, KVCache]:
    """Move entries to where there is room for so many tokens in all, and some to write after them."""
    cache = KVCache(seen, reserved(tokens, after=after))
    length = seen.keys_BSJC.shape[1]
    return cache.memory.map(lambda memory: memory[:, :length]), cache


def reserved(tokens: int, *, after: int = _AFTER) -> int:
    """Return the tokens to make room for, where so many are known to come."""
    return -(-(tokens + after) // _STEP) * _STEP


def capacity(tokens: int) -> int:
    """Return the tokens to make room for, to hold so many."""
    return -(-(tokens + tokens // 8) // _STEP) * _STEP


class KVSlots(NamedTuple):
    """Keys and values of rows that are decoded together: each row's from place 0 on, in memory of one length for all.

    A step writes into it in place, where `end_B`, on the device, says: whatever the rows hold, it is the same step.
    """

    keys_BSJC: Tensor
    values_BSJC: Tensor
    end_B: Tensor  # int64: entries that each row has
    key_units_BSJ: Tensor | None = None
    value_units_BSJ: Tensor | None = None

    @classmethod
    def of(cls, entries: Entries, end_B: Tensor) -> Self:
        """Slots whose memory these entries are."""
        keys, values, *units = entries
        return cls(keys, values, end_B, *units)

    @property
    def entries(self) -> Entries:
        """All the memory; a row's own entries are the first `end_B`."""
        return Entries(self.keys_BSJC, self.values_BSJC, self.key_units_BSJ, self.value_units_BSJ)
