"""A tensor that is read when it is needed: what every source gives and every destination takes. Knows no format."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from typing import Any, Self

import torch
from torch import Tensor

from sh2.errors import Sh2Error

Slices = tuple[slice, ...]
Pieces = Callable[[memoryview], Iterator[int]]
Progress = Callable[[int, int], None]  # bytes done, bytes in all

# these keep float32 whatever the model's dtype: a rounded pole, frequency or scale is another one
FLOAT32_NAMES = frozenset({"log_poles", "pole_shift", "residues", "inv_freq", "fp8_scales"})


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """Shape and dtype now, values on `read()`; nothing is kept in memory between reads."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    read_part: Callable[[Slices], Tensor] | None = None  # where its source reads parts alone
    # where its source has the bytes as they are: fills the buffer with the next ones, until there are none, and yields
    # how many; checked at the end
    pieces: Pieces | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Wrap a tensor that is in memory already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def part(self, slices: Slices) -> Tensor:
        """A part of the values, which alone is read where the source can; a checksum is of the whole, so unchecked."""
        return self.read()[slices] if self.read_part is None else self.read_part(slices)

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size

    def map(self, function: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """The tensor after `function`, which is first tried on a meta tensor for the new shape and dtype."""
        after = function(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return LazyTensor(tuple(after.shape), after.dtype, lambda: function(self.read()))


Tensors = Mapping[str, LazyTensor]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it is contiguous and on the CPU."""
    whole = tensor.detach().cpu().contiguous()
    # flattened, a dimension of one number would keep a stride that no view of bytes can have
    flat: Any = whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(flat)


def fill(file: RawIOBase, buffer: memoryview, label: str) -> None:
    """Read as many bytes as a buffer holds.

    Raises:
        Sh2Error: the file, which errors call `label`, ends before.
    """
    done = 0
    while done < len(buffer):  # one read gives at most 2 GB
        count = file.readinto(buffer[done:])
        if not count:
            raise Sh2Error(f"{label} was cut short while it was read").hint("copy or download the file again")
        done += count


def total_bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def stays_float32(name: str) -> bool:
    """Whether the tensor of ours with this name is float32 in every model."""
    return name.rsplit(".", 1)[-1] in FLOAT32_NAMES


def check_tensors(found: Tensors, expected: Mapping[str, tuple[int, ...]], label: str) -> None:
    """Compare names and shapes.

    Raises:
        Sh2Error: a tensor is missing, extra or misshapen; the message names it.
    """
    missing = [f"`{name}` is missing" for name in expected if name not in found]
    extra = [f"`{name}` is not expected" for name in found if name not in expected]
    misshapen = [
        f"`{name}` has shape {list(found[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != tuple(shape)
    ]
    if missing or extra or misshapen:
        raise Sh2Error(f"{label} does not fit its configuration: {_some(misshapen + missing + extra)}")


def _some(faults: Iterable[str], most: int = 6) -> str:
    faults = list(faults)
    rest = len(faults) - most
    return ", ".join(faults[:most]) + (f", and {rest} more" if rest > 0 else "")
