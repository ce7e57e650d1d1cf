"""A tensor made from others, kept until they change."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Kept:
    """What a function makes of tensors that seldom change, made once.

    Decoding asks for the same filters for every token. A change in place counts a tensor's version up, another tensor
    has another place: what was made of other values is never given back.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._value: Tensor | None = None

    def of(self, make: Callable[[], Tensor], *sources: Tensor) -> Tensor:
        """Return `make()`, or, without gradients, what it made of the same sources before."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        if any(isinstance(source, FakeTensor) for source in sources):  # without values
            return make()
        # a tensor of inference mode counts no versions
        versions = [0 if source.is_inference() else source._version for source in sources]
        key = [(source.data_ptr(), source.dtype, source.device) for source in sources], versions
        if self._value is None or self._key != key:
            value = make()
            if isinstance(value, FakeTensor):  # a trial without values
                return value
            self._key, self._value = key, value
        return self._value
