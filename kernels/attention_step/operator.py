"""Attention of one query a row: the Triton kernels where they can run, plain torch elsewhere."""

# B rows, S places of the cache, H heads, J key-value heads, C channels a head

import torch
from torch import Tensor

from kernels.attention_step import reference
from kernels.backend import Backend, lacks_fp8, use_triton

MAX_CHANNELS = 256


@torch.no_grad()
def attention_step(
    q_BHC: Tensor,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None = None,
    value_units_BSJ: Tensor | None = None,
    *,
    begin_B: Tensor | None = None,
    end_B: Tensor | None = None,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """Attend from one query a row to that row's entries of a cache; softmax in float32, not differentiable.

    Nothing is read on the host: one recorded graph of the call serves rows of any lengths.

    Args:
        q_BHC: queries, H a multiple of J: consecutive heads share keys and values in groups.
        keys_BSJC, values_BSJC: in q's dtype; or, with units, E4M3 codes as bytes (uint8).
        key_units_BSJ, value_units_BSJ: float32, what a code of 1 stands for, for each token and head.
        begin_B, end_B: int64, on q's device: row b sees entries begin_B[b] .. end_B[b] - 1, at least one; None is the
            first and S.

    Returns:
        y_BHC in q's dtype.

    Raises:
        ValueError: `backend` is `triton` and the kernels cannot run this call; the message says why.
    """
    arguments = (q_BHC, keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ, begin_B, end_B)
    if use_triton(Backend(backend), "attention_step", q_BHC, limit(q_BHC, keys_BSJC)):
        return _attend(*arguments)
    return reference.attention_step(*arguments)


@torch.no_grad()
def attention_append(
    z_BE: Tensor,
    frequencies: Tensor,
    interpolation: float,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None,
    value_units_BSJ: Tensor | None,
    end_B: Tensor,
    *,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """Put one token a row behind its last, IN PLACE, and move the rows' ends on; not differentiable.

    Args:
        z_BE: the tokens' projections, heads of C channels: H queries, J keys, J values.
        frequencies: of the rotary embedding [C/2], float32; a token at position t is rotated by t / interpolation of
            them, and its position is its row's end.
        keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ: the cache, as for `attention_step`.
        end_B: int64, entries that each row has; one more when this returns. A row without room stays, and loses its
            last.

    Returns:
        The rotated queries q_BHC, in z's dtype.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    arguments = (z_BE, frequencies, interpolation, keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ, end_B)
    obstacle = limit(z_BE.unflatten(1, (-1, keys_BSJC.shape[3])), keys_BSJC)
    cache = (keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ, end_B, frequencies)
    if not all(tensor is None or tensor[0].is_contiguous() for tensor in cache):
        obstacle = "a row of the cache is not in one piece"
    if use_triton(Backend(backend), "attention_append", z_BE, obstacle):
        return _append(*arguments)
    return reference.append(*arguments)


def limit(q_BHC: Tensor, keys_BSJC: Tensor) -> str | None:
    """Say what keeps the kernels from these queries and keys; None if nothing does."""
    if (C := q_BHC.shape[2]) > MAX_CHANNELS:
        return f"a head has {C} channels; the kernels take at most {MAX_CHANNELS}"
    return lacks_fp8(q_BHC) if keys_BSJC.dtype is torch.uint8 else None


@torch.library.custom_op("evo::attention_step", mutates_args=())
def _attend(
    q_BHC: Tensor,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None,
    value_units_BSJ: Tensor | None,
    begin_B: Tensor | None,
    end_B: Tensor | None,
) -> Tensor:
    from kernels.attention_step.step import attend

    with torch.cuda.device_of(q_BHC):
        return attend(
            q_BHC.contiguous(),
            _rows_packed(keys_BSJC),
            _rows_packed(values_BSJC),
            None if key_units_BSJ is None else _rows_packed(key_units_BSJ),
            None if value_units_BSJ is None else _rows_packed(value_units_BSJ),
            None if begin_B is None else begin_B.contiguous(),
            None if end_B is None else end_B.contiguous(),
        )


@_attend.register_fake
def _(q_BHC, keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ, begin_B, end_B):  # type: ignore[no-untyped-def]
    return q_BHC.new_empty(q_BHC.shape)


@torch.library.custom_op(
    "evo::attention_append",
    mutates_args=("keys_BSJC", "values_BSJC", "key_units_BSJ", "value_units_BSJ", "end_B"),
)
def _append(
    z_BE: Tensor,
    frequencies: Tensor,
    interpolation: float,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None,
    value_units_BSJ: Tensor | None,
    end_B: Tensor,
) -> Tensor:
    from kernels.attention_step.step import append

    with torch.cuda.device_of(z_BE):
        z_BE = z_BE if z_BE.stride(1) == 1 else z_BE.contiguous()
        cache = (keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ)
        return append(z_BE, frequencies, interpolation, *cache, end_B)


@_append.register_fake
def _(z_BE, frequencies, interpolation, keys_BSJC, values_BSJC, key_units_BSJ, value_units_BSJ, end_B):  # type: ignore[no-untyped-def]
    J, C = keys_BSJC.shape[2:]
    return z_BE.new_empty(z_BE.shape[0], z_BE.shape[1] // C - 2 * J, C)


def _rows_packed(cache_BSX: Tensor) -> Tensor:
    """The kernels take any distance between the rows of a batch, but the entries of a row in one piece."""
    return cache_BSX if cache_BSX[0].is_contiguous() else cache_BSX.contiguous()
