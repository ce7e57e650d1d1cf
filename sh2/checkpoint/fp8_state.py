"""The FP8 state that Transformer Engine leaves in published files: the scales of a layer, read without executing it.

`NAME._extra_state` is a pickle in a tensor of bytes (Transformer Engine 1.8 and later), or a file of torch.save in an
`io.BytesIO` or in bytes (before). Either is a table whose `scale_fwd` holds the scales of the layer's input, weight and
output. Its recipe is an object of Transformer Engine's, which is read as a stand-in that does nothing.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2
from torch.serialization import safe_globals

from kernels import E4M3_MAX

_HISTORY = 16  # steps that training looked back on, and the largest gradient that E5M2 holds
_E5M2_MAX = 57344.0
_ZIP = b"PK\x03\x04"


class _StandIn:
    """Whatever it stands for, it takes anything and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_RECIPE = "transformer_engine.common.recipe"
_RECIPE_NAMES = ("DelayedScaling", "Format", "_FormatHelper", "_OverrideLinearPrecision")


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _floats(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers, and stand-ins for recipes; refuses everything else."""

    _known: dict[tuple[str, str], Any] = {  # noqa: RUF012 - a constant
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("torch", "FloatTensor"): _floats,
        ("collections", "OrderedDict"): OrderedDict,
        **{(_RECIPE, name): _StandIn for name in _RECIPE_NAMES},
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in self._known:
            return self._known[module_name, global_name]
        raise pickle.UnpicklingError(f"`{module_name}.{global_name}` is not loaded")


def read_scales(blob: bytes) -> tuple[float, float] | None:
    """Read the scales of a layer's input and weight; None if the layer never ran in FP8.

    Raises:
        ValueError: the blob is not understood; it says why. Nothing in it was executed.
    """
    if not blob:
        return None
    try:
        if blob.startswith(_ZIP):
            with safe_globals([(_StandIn, f"{_RECIPE}.{name}") for name in _RECIPE_NAMES]):
                state = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        else:
            state = _Unpickler(io.BytesIO(blob)).load()
    except Exception as error:  # whatever damaged bytes make of a pickle
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's own reason is a page
        reason = f"`{culprit[1]}` is not loaded" if culprit else str(error).split("\n")[0]
        raise ValueError(reason or type(error).__name__) from None
    if state is None:
        return None
    scales = state.get("scale_fwd") if isinstance(state, Mapping) else None
    if not isinstance(scales, Tensor) or scales.ndim != 1 or len(scales) < 2 or not scales.is_floating_point():
        raise ValueError("it holds no list `scale_fwd`")
    first, second = scales[:2].tolist()
    if not (0 < first < float("inf") and 0 < second < float("inf")):
        raise ValueError(f"its scales are {first} and {second}")
    return first, second


def write_scales(scales: Tensor) -> Tensor:
    """The state, as a tensor of bytes, of a layer with these scales of input and weight [2]."""
    forward, backward = torch.ones(3), torch.ones(2)
    forward[:2] = scales
    state = {
        "scale_fwd": forward,
        "scale_inv_fwd": forward.reciprocal(),
        "amax_history_fwd": (E4M3_MAX / forward).expand(_HISTORY, -1).clone(),
        "scale_bwd": backward,
        "scale_inv_bwd": backward.reciprocal(),
        "amax_history_bwd": (_E5M2_MAX / backward).expand(_HISTORY, -1).clone(),
        "extra_fp8_variables": {},
    }
    file = io.BytesIO()
    _Pickler(file).dump(state)
    return torch.tensor(bytearray(file.getvalue()), dtype=torch.uint8)


class _Pickler(pickle.Pickler):
    """Writes tensors as lists of numbers: torch would put addresses of this process into the bytes."""

    def reducer_override(self, obj: object) -> Any:
        return (torch.FloatTensor, (obj.tolist(),)) if isinstance(obj, Tensor) else NotImplemented
