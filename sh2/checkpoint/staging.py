"""Tensors from files to the memory where they compute, several at once: one thread does not keep up with a disk."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sh2.checkpoint.tensors import LazyTensor, Tensors

_T = TypeVar("_T")
_THREADS = 8  # beyond, nothing was gained
_PIECE = 16 << 20  # bytes that go to a GPU at once, through memory that it reads by itself
_own = local()


def map_tensors(work: Callable[[str, LazyTensor], _T], tensors: Tensors) -> Iterator[_T]:
    """What `work` makes of every tensor, in order; several at once, as many as torch may use threads."""
    with ThreadPoolExecutor(min(_THREADS, torch.get_num_threads()), thread_name_prefix="tensors") as pool:
        try:
            yield from pool.map(work, tensors.keys(), tensors.values())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def copied(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of a tensor of the host, elsewhere or in another dtype: what is mapped may go with its file."""
    if device.type == "cuda" and tensor.numel():
        return _through_staging(tensor.contiguous(), device, dtype)
    if device.type != "cpu" or dtype is not tensor.dtype:
        return tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    # of a thread's own: torch would start as many threads again for each of ours
    copy = torch.empty(tensor.shape, dtype=dtype)
    np.copyto(_bytes(copy), _bytes(tensor.contiguous()))
    return copy


def _through_staging(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Piece by piece, so that the next is read while others' pieces are on their way."""
    if not hasattr(_own, "staging"):
        _own.staging = torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True)
    staging: Tensor = _own.staging
    copy = torch.empty(tensor.shape, dtype=dtype, device=device)
    numbers, source = copy.view(-1), _bytes(tensor)
    step = _PIECE // tensor.element_size()
    for first in range(0, tensor.numel(), step):
        piece = numbers[first : first + step]
        size = piece.numel() * tensor.element_size()
        begin = first * tensor.element_size()
        np.copyto(staging.numpy()[:size], source[begin : begin + size])
        piece.copy_(staging[:size].view(tensor.dtype).to(device, non_blocking=True))
        torch.cuda.current_stream(device).synchronize()
    return copy


def _bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    flat: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.view(-1).view(torch.uint8).numpy()
    return flat
