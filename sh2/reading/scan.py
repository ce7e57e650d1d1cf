"""What a model predicts at every token of a sequence of any length, in blocks. Knows nothing of files or strands."""

# B batch, L length, D width, V vocabulary, S signals

from collections.abc import Callable, Iterator
from enum import IntEnum
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.chunks import chunks
from sh2.reading.fetch import fetched
from sh2.reading.perplexity import window_ends
from sh2.tokens import EOD, Tokens, as_ids, to_batch

# tokens that are made ids of 8 bytes and moved to the device at once
_STRETCH = 1 << 20
_BASES = tuple(b"ACGT")

Block = tuple[int, NDArray[np.float32]]


class Signal(IntEnum):
    """The rows of a block: what is known of the prediction of a token, from those before it."""

    LOG_PROB = 0  # of the token itself, over the whole vocabulary; natural logarithm
    ENTROPY = 1  # bits, 0 to 2: of the four bases, their probabilities divided by their sum
    A = 2  # probabilities over the whole vocabulary, as the log-probability is
    C = 3
    G = 4
    T = 5


def scan(
    model: StripedHyena2,
    tokens: Tokens,
    *,
    context: int | None = None,
    prepend_eod: bool = False,
    max_tokens: int = 65_536,
    chunk: int = 8192,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Block]:
    """Run along a sequence and yield what is predicted, block by block, in the memory of one block.

    The state is carried from block to block, so that nothing shows where they meet. Attention looks back on all of
    the sequence and keeps it: `context` bounds both, with the windows of `sh2.reading.perplexity.sliding_log_probs`.

    Args:
        tokens: bytes or uint8 ids where the sequence is long: others are turned into 8 bytes a token.
        context: tokens that a token may look back on; in windows, each half over the one before.
        prepend_eod: begin after an EOD, as a document does, so that the first token has a prediction too.
        max_tokens: tokens of one batch of windows, at most.
        chunk: tokens of one row that are run at once, at most.
        progress: called with the number of tokens predicted, after every block.

    Yields:
        The number of a block's first token, and the block [S, L] float32, rows as in `Signal`. Blocks join without
        gaps from token 0 with an EOD before, and from token 1 without: a single token then has none.

    Raises:
        Sh2Error: the sequence is empty, or has an id outside the vocabulary; a setting is below 1.
    """
    for name, value in (("context", context), ("max_tokens", max_tokens), ("chunk", chunk)):
        if value is not None and value < 1:
            raise Sh2Error(f"{name} must be at least 1, not {value}")
    ids = _narrow_ids(tokens, model.config.vocab_size)
    if not ids.size:
        raise Sh2Error("the sequence is empty: there is nothing to scan")
    if prepend_eod:
        ids = np.concatenate([np.array([EOD], dtype=ids.dtype), ids])
    whole = context is None or ids.size - 1 <= context
    blocks = _carried(model, ids, chunk) if whole else _windows(model, ids, context or 0, max_tokens, chunk)
    for target, block_SL in blocks:
        progress(block_SL.shape[1])
        yield target - prepend_eod, block_SL


def _narrow_ids(tokens: Tokens, vocab_size: int) -> NDArray[np.integer]:
    """The ids in one byte each where they come so: a chromosome has 200 million."""
    if isinstance(tokens, bytes):
        tokens = np.frombuffer(tokens, dtype=np.uint8)
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.uint8 and tokens.ndim == 1 and vocab_size >= 256:
        return tokens
    return as_ids(tokens, vocab_size)


@torch.inference_mode()
def _carried(model: StripedHyena2, ids: NDArray[np.integer], chunk: int) -> Iterator[Block]:
    """Signals of tokens 1, 2, ... in one pass."""
    device, state = model.embedding.weight.device, None
    for first in range(0, ids.size - 1, _STRETCH):
        ids_BL = to_batch([ids[first : first + _STRETCH + 1].astype(np.int64)], device)
        for start, x_BLD, after in chunks(model, ids_BL[:, :-1], most=chunk, state=state):
            targets_BL = ids_BL[:, start + 1 : start + 1 + x_BLD.shape[1]]
            yield first + start + 1, fetched(_signals(model.logits(x_BLD), targets_BL))[:, 0]
            state = after


@torch.inference_mode()
def _windows(
    model: StripedHyena2, ids: NDArray[np.integer], context: int, max_tokens: int, chunk: int
) -> Iterator[Block]:
    """Signals of tokens 1, 2, ... from windows of `context` predictions, of which each adds those that are new."""
    device = model.embedding.weight.device
    ends = window_ends(ids.size - 1, context, max(1, context // 2))
    rows, begin = max(1, max_tokens // context), 0
    for first in range(0, len(ends), rows):
        members = ends[first : first + rows]
        ids_BL = to_batch([ids[end - context : end + 1].astype(np.int64) for end in members], device)
        parts = [
            _signals(model.logits(x_BLD), ids_BL[:, start + 1 : start + 1 + x_BLD.shape[1]]).cpu()
            for start, x_BLD, _ in chunks(model, ids_BL[:, :-1], most=min(context, chunk))
        ]
        signals_SBL = fetched(torch.cat(parts, dim=2))
        new = []
        for row, end in enumerate(members):
            new.append(signals_SBL[:, row, begin - end :])
            begin = end
        block_SL = np.concatenate(new, axis=1)
        yield begin + 1 - block_SL.shape[1], block_SL


def _signals(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """The rows of `Signal` [S, B, L], float32 whatever the logits' dtype."""
    wide_BLV = logits_BLV.float()
    total_BL = torch.logsumexp(wide_BLV, dim=-1)
    chosen_BL = wide_BLV.gather(-1, targets_BL[..., None])[..., 0]
    bases_BL4 = wide_BLV[..., list(_BASES)]
    log_share_BL4 = bases_BL4.log_softmax(dim=-1)
    entropy_BL = -(log_share_BL4.exp() * log_share_BL4).sum(dim=-1) / log(2)
    probs_BL4 = (bases_BL4 - total_BL[..., None]).exp()
    return torch.stack([chosen_BL - total_BL, entropy_BL, *probs_BL4.unbind(dim=-1)])
