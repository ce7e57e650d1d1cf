"""Which tensors stay float32 when a model is cast: poles, residues and rotary frequencies."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class Float32Kept(nn.Module):
    """A module whose `float32_names` keep their values and dtype under `.to(dtype)`, `.bfloat16()` and the like.

    A pole rounded to bfloat16 is another filter: at a million tokens the error in the exponent is everything.
    """

    float32_names: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self, name).detach() for name in self.float32_names if getattr(self, name) is not None}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = getattr(self, name)
            if moved.dtype is not torch.float32:
                empty = value.is_meta or moved.is_meta
                moved.data = (
                    torch.empty_like(value, device=moved.device) if empty else value.to(moved.device, torch.float32)
                )
        return self
