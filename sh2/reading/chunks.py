"""Running a model over sequences of any length: pieces that carry the state, as long as the memory allows."""

# B batch, L length, D width

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import Backend
from sh2.devices.placement import free_bytes
from sh2.errors import Sh2Error
from sh2.fp8 import products_of
from sh2.mixers import Hyena
from sh2.model import StripedHyena2
from sh2.planning.accounting import Numbers, activation_bytes
from sh2.state import ModelState, expect

_LEAST = 64  # tokens a row: where these do not fit, fewer will not help
_TYPICAL = 4096  # tokens, over which what does not grow with them is spread


class OutOfMemoryError(Sh2Error):
    """So many sequences at once do not fit, however short the pieces."""


def chunks(
    model: StripedHyena2, ids_BL: Tensor, *, most: int, state: ModelState | None = None
) -> Iterator[tuple[int, Tensor, ModelState]]:
    """Run ids through a model piece by piece.

    A piece has at most `most` tokens a row, fewer where a GPU's free memory asks for it; a piece that nevertheless does
    not fit is run again in halves, and so are those after it. What is yielded joins to the same outputs however the
    pieces fall.

    Args:
        ids_BL: token ids.
        state: what comes before; None starts sequences.

    Yields:
        The first token's number, the last block's output x_BLD of the piece, and the state after it.

    Raises:
        OutOfMemoryError: not even a short piece fits.
    """
    rows, length = ids_BL.shape
    # the memory is not looked at for what it could not shorten: that takes as long as starting a short piece does
    chunk = min(most, affordable(model, rows)) if length > _LEAST else most
    start = 0
    while start < length:
        piece_BL = ids_BL[:, start : start + chunk]
        try:
            done = model.hidden(piece_BL, state)
        except torch.OutOfMemoryError:
            done = None
        if done is not None:
            x_BLD, state = done
            done = None  # it would hold the first piece's keys and values while the second runs
            if start == 0 and not torch.is_grad_enabled():
                state = _with_room(state, rows, length - piece_BL.shape[1])
            yield start, x_BLD, state
            start += piece_BL.shape[1]
            continue
        # not within the handler: there the error still holds what the failed piece allocated
        chunk = piece_BL.shape[1] // 2
        if chunk < _LEAST:
            raise OutOfMemoryError(
                f"out of memory: {rows} sequences of {piece_BL.shape[1]} tokens at once do not fit after {start} tokens"
            ).hint("run fewer sequences at once, or a smaller model, or on a device with more memory")
        if ids_BL.device.type == "cuda":
            torch.cuda.empty_cache()


def _with_room(state: ModelState, rows: int, tokens: int) -> ModelState:
    """The state, with room for the tokens to come, if any."""
    try:
        return expect(state, tokens) if tokens else state
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            f"out of memory: the keys and values of {rows} sequences do not fit, {tokens} tokens before their ends"
        ).hint(
            "run fewer sequences at once, keep keys and values in FP8 (`use_kv_dtype`, --kv-dtype fp8), or on a device"
            " with more memory"
        ) from None


def read(model: StripedHyena2, ids_BL: Tensor, *, most: int) -> tuple[Tensor, ModelState]:
    """Run ids through as `chunks` does, and keep the end: the last token's output x_BD, and the state after it."""
    for _, x_BLD, state in chunks(model, ids_BL, most=most):
        end = x_BLD[:, -1], state
    return end


def affordable(model: StripedHyena2, rows: int) -> int:
    """Estimate how many tokens a row may be run at once: a power of two that takes half of a GPU's free memory.

    Of a model on several GPUs, that of the fullest. A CPU has swap and knows no out of memory: there any number is
    affordable.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    if not devices:
        return 1 << 62
    free = min(map(free_bytes, devices))
    return max(_LEAST, 1 << (free // 2 // (rows * bytes_a_token(model))).bit_length() - 1)


def bytes_a_token(model: StripedHyena2) -> int:
    """What a token's passage through the model holds in memory at once, beside states and weights."""
    weight = model.embedding.weight
    plain = [part for part in model.modules() if isinstance(part, Hyena) and part.backend is Backend.REFERENCE]
    numbers = Numbers(
        dtype="bf16" if weight.element_size() == 2 else "fp32",
        projections=products_of(model),
        fused=weight.is_cuda and not plain,
    )
    return activation_bytes(model.config, _TYPICAL, numbers) // _TYPICAL
