"""Which implementation runs an operator: Triton kernels where they can, elsewhere plain torch with the reason why."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_FP8_CAPABILITY = (8, 9)  # of the first GPUs that know it
_F = TypeVar("_F", bound=Callable[..., Any])


def constant(function: _F) -> _F:
    """Let torch's compiler call a function while it compiles, and keep the result.

    It is `torch.compiler.assume_constant_result`, which loads the compiler: seconds, of programs that compile nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Backend(StrEnum):
    """`auto` takes Triton where it can run and says once why it cannot; `triton` raises with the reason."""

    AUTO = "auto"
    TRITON = "triton"
    REFERENCE = "reference"


def use_triton(backend: Backend, operator: str, z_BLE: Tensor, limit: str | None = None) -> bool:
    """Decide between the Triton kernels and the reference for one call.

    Args:
        z_BLE: the operator's input: its device and dtype decide.
        limit: what else keeps the kernels from this call, in words; None if nothing does.

    Raises:
        ValueError: `backend` is no backend's name, or is `triton` and the kernels cannot run this call: it says why.
    """
    backend = Backend(backend)
    if backend is Backend.REFERENCE:
        return False
    reason = unavailable(z_BLE.device.type, z_BLE.dtype) or limit
    if reason is None:
        return backend is Backend.TRITON or z_BLE.is_cuda
    if backend is Backend.TRITON:
        raise ValueError(f"{operator}: the Triton kernels cannot run here: {reason}")
    if z_BLE.is_cuda and not torch.compiler.is_compiling():
        _say_once(operator, reason)
    return False


def lacks_fp8(x: Tensor) -> str | None:
    """Say that a tensor's GPU does not know FP8; None if it does, or if the tensor is on none."""
    return _lacks_fp8(x.device.index) if x.is_cuda else None


@constant
def _lacks_fp8(device: int) -> str | None:
    if torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} does not know FP8"
    return None


def limit_in_place(past_BPE: Tensor, inner: Tensor, dtype: torch.dtype) -> str | None:
    """Say what keeps a kernel from moving a state on in place, for inputs of this dtype; None if nothing does."""
    if not (past_BPE.is_contiguous() and inner.is_contiguous()):
        return "the state's tensors are not contiguous"
    if (past_BPE.dtype, inner.dtype) != (dtype, torch.float32):
        return f"the state holds {past_BPE.dtype} and {inner.dtype}, not {dtype} and float32"
    return None


@constant
def unavailable(device: str, dtype: torch.dtype) -> str | None:
    """Say why the Triton kernels cannot take tensors of this device and dtype; None if they can."""
    return _unavailable(device, dtype)


@functools.cache
def _unavailable(device: str, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device == "cpu" and not _interpreting():
        return "the tensors are on the CPU"
    if device not in ("cpu", "cuda"):
        return f"the tensors are on {device}; the kernels run on CUDA GPUs"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the dtype is {dtype}; the kernels take float32, bfloat16 and float16"
    return None


def _interpreting() -> bool:
    """Tell whether TRITON_INTERPRET=1: kernels then run on CPU tensors, slowly, for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _say_once(operator: str, reason: str) -> None:
    log.warning("%s: plain torch instead of the Triton kernels: %s", operator, reason)
