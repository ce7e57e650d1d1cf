"""What tensors really take: every storage that an operation makes is counted until it is freed.

Under a `FakeTensorMode` nothing is computed or allocated, so that models and lengths of any size can be counted.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sh2.config import ModelConfig
from sh2.fp8 import pack_layers
from sh2.model import StripedHyena2


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of living storages that were made under it, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def counting(
    config: ModelConfig, dtype: torch.dtype, *, fp8_weights: bool = False
) -> Iterator[tuple[LiveBytes, StripedHyena2]]:
    """Count on fake tensors; yields the count and a model whose weights have no values, on a CPU that has no memory.

    Filters and norms run as on a GPU: what a CPU's own convolutions take, no fake one knows.
    """
    with torch.device("meta"):
        model = StripedHyena2(config)
        if fp8_weights:
            pack_layers(model.blocks, trained_in_fp8=config.fp8_input_projections)
    with (
        patch("kernels.fir.reference._ONEDNN", False),
        patch.object(import_module("kernels.rms_norm.reference"), "_on_host", lambda *_: False),
        FakeTensorMode(allow_non_fake_inputs=True),
        LiveBytes() as live,
    ):
        for module in model.modules():
            kept = getattr(module, "float32_names", ())
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    made = torch.empty(tensor.shape, dtype=torch.float32 if name in kept else dtype)
                    module._parameters[name] = nn.Parameter(made)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        # it looks at the values of ids
        model._check = lambda *_: None  # type: ignore[method-assign]
        yield live, model
