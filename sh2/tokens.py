"""Token ids as the model room takes them: bytes, text or integers; one byte is one token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error

EOD = 0  # between documents; also what stands before the first base of one
PAD = 1

Tokens = str | bytes | Sequence[int] | NDArray[np.integer] | Tensor


def as_rows(sequences: Sequence[Tokens], vocab_size: int) -> list[NDArray[np.int64]]:
    """Return the token ids of several sequences, each [L], int64.

    Raises:
        Sh2Error: as `as_ids`, or one sequence is given where a list of them is meant.
    """
    if isinstance(sequences, str | bytes):
        raise Sh2Error(f"a list of sequences is wanted, not one {type(sequences).__name__}").hint(
            "put it into a list: `[sequence]`"
        )
    return [as_ids(tokens, vocab_size) for tokens in sequences]


def as_ids(tokens: Tokens, vocab_size: int) -> NDArray[np.int64]:
    """Return token ids [L], int64.

    Raises:
        Sh2Error: an id is negative or not below `vocab_size`, or the tokens are no row of whole numbers.
    """
    if isinstance(tokens, str):
        tokens = tokens.encode()
    if isinstance(tokens, bytes):
        ids = np.frombuffer(tokens, dtype=np.uint8)
    else:
        try:
            ids = np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)
        except ValueError:
            raise Sh2Error("tokens must be one row of whole numbers, not rows of unequal lengths") from None
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise Sh2Error(f"tokens must be one row of whole numbers, not {ids.dtype} of shape {list(ids.shape)}")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise Sh2Error(f"token ids must lie in 0..{vocab_size - 1}, not {ids.min()}..{ids.max()}")
    return ids.astype(np.int64)


def to_batch(rows: Sequence[NDArray[np.int64]], device: torch.device) -> Tensor:
    """Stack rows of equal length: ids_BL, int64, on `device`."""
    return to_device(np.stack(rows), device)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device; a GPU goes on with its work meanwhile, and so does this process."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
