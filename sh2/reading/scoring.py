"""Scoring: token ids in, log-likelihoods out. Knows nothing of FASTA, strands or variants."""

# B batch, L length, V vocabulary

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.chunks import chunks, read
from sh2.reading.fetch import fetched
from sh2.state import ModelState, select
from sh2.tokens import EOD, Tokens, as_ids, as_rows, to_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely a model finds a sequence. Natural logarithms, except for the bits."""

    length: int  # tokens of the sequence
    num_scored: int  # tokens with a prediction: all but the first, or all after an EOD or a condition
    log_likelihood: float  # sum over the scored tokens
    log_probs: NDArray[np.float32] | None = None  # [num_scored], on request

    @property
    def mean_log_likelihood(self) -> float:
        """Log-likelihood a scored token; NaN when nothing was scored."""
        return self.log_likelihood / self.num_scored if self.num_scored else math.nan

    @property
    def bits_per_base(self) -> float:
        """Minus the mean log-likelihood, in bits; NaN when nothing was scored."""
        return -self.mean_log_likelihood / math.log(2)


def score(
    model: StripedHyena2,
    sequences: Sequence[Tokens],
    *,
    condition: Tokens = b"",
    prepend_eod: bool = False,
    per_token: bool = False,
    max_tokens: int = 65_536,
    chunk: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """Score sequences by the model's log-probability of each token given those before it.

    Sequences of equal length share a batch; none is ever padded, so a score has no batch mates to depend on. Long ones
    run in chunks that carry the state, in the memory of one chunk. Log-probabilities are taken in float32 and summed
    in float64.

    Args:
        sequences: text, bytes or token ids, in any mix.
        condition: what stands before each sequence; it is read once and has no part in the scores. Empty is nothing.
        prepend_eod: start each sequence, or what stands before it, as a document, after an EOD: then the first token
            has a prediction, too.
        per_token: keep the log-probability of every scored token.
        max_tokens: tokens of one batch and chunk, at most.
        chunk: tokens of one sequence that are run at once, at most; fewer where memory is short.
        progress: called with the number of tokens run, after every chunk of a batch.

    Returns:
        One score a sequence, in order.

    Raises:
        Sh2Error: a sequence is empty, or has an id outside the vocabulary; a setting is below 1.
    """
    for name, value in (("max_tokens", max_tokens), ("chunk", chunk)):
        if value < 1:
            raise Sh2Error(f"{name} must be at least 1, not {value}")
    rows = as_rows(sequences, model.config.vocab_size)
    for number, row in enumerate(rows):
        if not row.size:
            raise Sh2Error(f"sequence {number} is empty: there is nothing to score")
    before = np.concatenate([[EOD] * prepend_eod, as_ids(condition, model.config.vocab_size)]).astype(np.int64)
    # the last token of what stands before predicts the first of each sequence, so it is theirs
    past = before[:-1]
    state = _state_after(model, past, chunk=chunk) if rows and past.size else None
    rows = [np.concatenate([before[-1:], row]) for row in rows]
    scores: list[Score | None] = [None] * len(rows)
    lengths = [len(row) for row in rows]
    for members in batches_of_equal_length(lengths, max_tokens=max_tokens, chunk=chunk, past=past.size):
        log_probs_BL = token_log_probs(
            model, [rows[member] for member in members], chunk=chunk, state=state, progress=progress
        )
        sums_B = log_probs_BL.sum(axis=1, dtype=np.float64)
        for place, member in enumerate(members):
            scores[member] = Score(
                length=len(rows[member]) - min(1, before.size),
                num_scored=log_probs_BL.shape[1],
                log_likelihood=float(sums_B[place]),
                log_probs=log_probs_BL[place] if per_token else None,
            )
    return [one for one in scores if one is not None]


@torch.inference_mode()
def _state_after(model: StripedHyena2, ids: NDArray[np.int64], *, chunk: int) -> ModelState:
    """The state of one row after these tokens."""
    return read(model, to_batch([ids], model.embedding.weight.device), most=chunk)[1]


def batches_of_equal_length(lengths: Sequence[int], *, max_tokens: int, chunk: int, past: int = 0) -> list[list[int]]:
    """Group the indices of equal lengths, each group small enough that a chunk of it holds at most `max_tokens`.

    Args:
        past: tokens before every sequence, whose keys and values each row of a batch has in memory.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    groups = []
    for length, members in by_length.items():
        size = max(1, max_tokens // (min(length, chunk) + past))
        groups += [members[first : first + size] for first in range(0, len(members), size)]
    return groups


@torch.inference_mode()
def token_log_probs(
    model: StripedHyena2,
    rows: Sequence[NDArray[np.int64]],
    *,
    chunk: int = 8192,
    state: ModelState | None = None,
    among: Tokens | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Return log p(token t+1 | tokens 0..t) of rows of equal length L: [B, L-1], float32.

    Args:
        state: of one row, what comes before each of these.
        among: A tokens of which to return, at every place, each one's log-probability: [B, L-1, A].
    """
    ids_BL = to_batch(rows, model.embedding.weight.device)
    if state is not None:
        state = select(state, ids_BL.new_zeros(len(rows)))
    among_A = None if among is None else torch.from_numpy(as_ids(among, model.config.vocab_size)).to(ids_BL.device)
    parts: list[Tensor] = []
    for start, x_BLD, _ in chunks(model, ids_BL[:, :-1], most=chunk, state=state):
        targets_BL = ids_BL[:, start + 1 : start + 1 + x_BLD.shape[1]]
        # fetched at the end: to fetch a piece's is to wait for it, while a GPU waits for the next
        logits_BLV = model.logits(x_BLD)
        parts.append(log_probs_of(logits_BLV, targets_BL if among_A is None else among_A))
        if progress is not None:
            progress(targets_BL.numel())
    if not parts:
        return np.zeros((len(rows), 0, *(() if among_A is None else among_A.shape)), dtype=np.float32)
    return fetched(torch.cat(parts, dim=1))


def log_probs_of(logits_BLV: Tensor, tokens: Tensor) -> Tensor:
    """Return log-probabilities under logits [B, L, V], float32 whatever the logits' dtype.

    Args:
        tokens: one for each place, int64 [B, L]; or A that are asked for at every place, int64 [A].

    Returns:
        [B, L], or [B, L, A].
    """
    wide_BLV = logits_BLV.float()
    total_BL = torch.logsumexp(wide_BLV, dim=-1)
    if tokens.ndim == 1:
        return wide_BLV[..., tokens] - total_BL[..., None]
    return wide_BLV.gather(-1, tokens[..., None])[..., 0] - total_BL
