"""How well a model predicts a long sequence, each token with a bounded context before it."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.scoring import Score, batches_of_equal_length, token_log_probs
from sh2.tokens import EOD, Tokens, as_ids


def sliding_log_probs(
    model: StripedHyena2,
    tokens: Tokens,
    *,
    context: int,
    stride: int | None = None,
    prepend_eod: bool = True,
    among: Tokens | None = None,
    max_tokens: int = 65_536,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Return the log-probability of every token, read in windows that overlap.

    A window predicts `context` tokens, and the next one begins `stride` later, so a token has at least
    `context - stride` others before it, unless it is nearer to the beginning than that.

    Args:
        stride: half the context by default.
        prepend_eod: begin after an EOD, as a document does, so that the first token is scored too.
        among: A tokens of which to return each one's log-probability at every place, float32 [L, A].
        max_tokens: tokens of one batch, at most.
        progress: called with the number of tokens that were newly scored.

    Returns:
        float32 [L], or [L-1] without an EOD before; natural logarithms.

    Raises:
        Sh2Error: the sequence is empty, or the stride is not 1 to `context`.
    """
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise Sh2Error(f"the stride must lie in 1..{context}, the context, not {stride}")
    ids = as_ids(tokens, model.config.vocab_size)
    if not ids.size:
        raise Sh2Error("the sequence is empty: there is nothing to score")
    if prepend_eod:
        ids = np.concatenate([[EOD], ids])
    count = ids.size - 1
    ends = window_ends(count, context, stride)
    log_probs = np.empty((count, *(() if among is None else (len(among),))), dtype=np.float32)
    lengths = [min(end, context) + 1 for end in ends]
    for members in batches_of_equal_length(lengths, max_tokens=max_tokens, chunk=context):
        rows = [ids[ends[member] + 1 - lengths[member] : ends[member] + 1] for member in members]
        for member, row in zip(members, token_log_probs(model, rows, among=among), strict=True):
            begin = ends[member - 1] if member else 0
            log_probs[begin : ends[member]] = row[begin - ends[member] :]
            progress(ends[member] - begin)
    return log_probs


def window_ends(count: int, context: int, stride: int) -> list[int]:
    """Return the number of each window's last prediction, counted from 1, for `count` predictions in all.

    A window makes `context` predictions, or all where there are fewer. The first keeps all of its own, the others
    those after the end of the one before; the last one is moved back to end with the sequence.
    """
    if not count:
        return []
    return [*range(context, count, stride), count]


def window_log_probs(
    model: StripedHyena2,
    tokens: Tokens,
    *,
    length: int,
    max_tokens: int = 65_536,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Return the log-probabilities of a sequence that is cut into windows, each read as a document of its own.

    Args:
        length: tokens of a window; what is left after the last whole one is not read.
        max_tokens: tokens of one batch, at most; one window at least.
        progress: called with the number of tokens that were newly scored.

    Returns:
        float32 [windows, length]: token p of a window has the p before it, and an EOD before these; natural logarithms.
    """
    ids = as_ids(tokens, model.config.vocab_size)
    windows = ids[: ids.size - ids.size % length].reshape(-1, length)
    log_probs = np.empty(windows.shape, dtype=np.float32)
    rows = max(1, max_tokens // length)
    for first in range(0, len(windows), rows):
        batch = windows[first : first + rows]
        with_eod = np.concatenate([np.full((len(batch), 1), EOD), batch], axis=1)
        log_probs[first : first + rows] = token_log_probs(model, list(with_eod))
        progress(batch.size)
    return log_probs


def score_sliding(
    model: StripedHyena2,
    tokens: Tokens,
    *,
    context: int,
    prepend_eod: bool = False,
    per_token: bool = False,
    max_tokens: int = 65_536,
    progress: Callable[[int], None] = lambda _: None,
) -> Score:
    """Score one sequence as `sh2.score` does, but each token with half the context to all of it, and no more.

    Raises:
        Sh2Error: as `sliding_log_probs`.
    """
    log_probs = sliding_log_probs(
        model, tokens, context=context, prepend_eod=prepend_eod, max_tokens=max_tokens, progress=progress
    )
    return Score(
        length=log_probs.size + (not prepend_eod),
        num_scored=log_probs.size,
        log_likelihood=float(log_probs.sum(dtype=np.float64)),
        log_probs=log_probs if per_token else None,
    )
