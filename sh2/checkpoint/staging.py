"""Tensors from files to the memory where they compute, several at once: one thread does not keep up with a disk."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sh2.checkpoint.tensors import LazyTensor, Pieces, Tensors, tensor_bytes

_T = TypeVar("_T")
_THREADS = 8  # each keeps a core busy with checksums
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


def copied(lazy: LazyTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values in memory of their own, contiguous: a tensor that stayed mapped would change, or go, with its file."""
    if device.type == "cuda":
        return _through_staging(lazy, device, dtype)
    if lazy.pieces is None:
        tensor = lazy.read()
        return tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    whole = torch.empty(lazy.shape, dtype=lazy.dtype)
    deque(lazy.pieces(tensor_bytes(whole)), maxlen=0)
    return whole.to(device=device, dtype=dtype)


def _through_staging(lazy: LazyTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Piece by piece, so that the next is read while others' pieces are on their way."""
    if not hasattr(_own, "staging"):
        _own.staging = torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True)
    staging: Tensor = _own.staging
    copy = torch.empty(lazy.shape, dtype=dtype, device=device)
    numbers, first = copy.view(-1), 0
    for size in (lazy.pieces or _of(lazy.read()))(tensor_bytes(staging)):
        piece = staging[:size].view(lazy.dtype)
        numbers[first : first + piece.numel()].copy_(piece.to(device, non_blocking=True))
        first += piece.numel()
        torch.cuda.current_stream(device).synchronize()
    return copy


def _of(tensor: Tensor) -> Pieces:
    """The pieces of a tensor that is there."""
    source = np.asarray(tensor_bytes(tensor))

    def pieces(buffer: memoryview) -> Iterator[int]:
        room = np.asarray(buffer)
        for begin in range(0, source.size, room.size):
            part = source[begin : begin + room.size]
            np.copyto(room[: part.size], part)
            yield part.size

    return pieces
