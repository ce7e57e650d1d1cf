"""Needle in a haystack: how well a model repeats, at the end of a sequence, what it read once long before.

A needle of random bases lies at some depth of a haystack. The sequence ends with the needle's beginning, the cue, and
the model is asked for the rest of it. The same without the needle in the haystack shows what guessing gives.
"""

# B rows, L length, V vocabulary

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.chunks import chunks
from sh2.reading.scoring import log_probs_of
from sh2.tokens import EOD, to_batch

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """What is hidden and asked for.

    Raises:
        Sh2Error: the cue is empty or leaves nothing to ask for, or there are no trials.
    """

    length: int = 100  # bases of the needle
    cue: int = 32  # of which so many are given at the end
    trials: int = 4  # needles and haystacks a length and depth
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.cue < self.length:
            raise Sh2Error(f"the cue must be of 1 to {self.length - 1} bases, fewer than the needle, not {self.cue}")
        if self.trials < 1:
            raise Sh2Error(f"there must be at least 1 trial, not {self.trials}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """What was recalled over all trials of a length and depth; means over the bases asked for."""

    length: int  # tokens before the first base that is asked for, the cue included
    depth: float  # where the needle began: 0 at the start, 1 right before the cue
    accuracy: float  # share of the bases that were the likeliest of A, C, G and T
    log_prob: float  # natural logarithm
    log_prob_without: float  # the same where the haystack has no needle


@torch.inference_mode()
def recall(
    model: StripedHyena2,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    needle: Needle,
    haystack: Ids | None = None,
    max_tokens: int = 65_536,
    chunk: int = 8192,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Recall]:
    """Measure recall at every length and depth, in that order.

    Args:
        lengths: tokens before what is asked for, each at least the needle and its cue.
        depths: 0 to 1.
        haystack: tokens to cut haystacks from, at random places; uniformly random bases if None.
        max_tokens: tokens of one batch and chunk, at most.
        progress: called with the number of tokens that were read.

    Raises:
        Sh2Error: a length or a depth is out of range, or the haystack is shorter than a length.
    """
    for depth in depths:
        if not 0 <= depth <= 1:
            raise Sh2Error(f"a depth must lie in 0..1, not {depth:g}")
    for length in lengths:
        if length < needle.length + needle.cue:
            raise Sh2Error(
                f"a length must be at least {needle.length + needle.cue}, the needle and its cue, not {length}"
            )
        if haystack is not None and len(haystack) < length:
            raise Sh2Error(f"the haystack has {len(haystack)} bases, fewer than the length {length}")
    for length in lengths:
        # the same haystacks and needles at all depths; the last row of each trial has no needle
        rows = [row for trial in range(needle.trials) for row in _rows(length, depths, needle, haystack, trial)]
        size = max(1, max_tokens // min(chunk, length))
        answers = [
            answer
            for first in range(0, len(rows), size)
            for answer in _ask(model, rows[first : first + size], needle.length - needle.cue, chunk, progress)
        ]
        table = np.array(answers).reshape(needle.trials, len(depths) + 1, 2).mean(axis=0)
        for depth, (accuracy, log_prob) in zip(depths, table[:-1].tolist(), strict=True):
            yield Recall(
                length=length,
                depth=depth,
                accuracy=accuracy,
                log_prob=log_prob,
                log_prob_without=float(table[-1, 1]),
            )


def _rows(length: int, depths: Sequence[float], needle: Needle, haystack: Ids | None, trial: int) -> Iterator[Ids]:
    """The sequences of one trial, with what is asked for at their ends: one a depth, and one without a needle."""
    rng = np.random.default_rng([needle.seed, length, trial])
    hidden = rng.choice(BASES, needle.length)
    room = length - needle.length - needle.cue
    if haystack is None:
        straw = rng.choice(BASES, length - needle.cue)
    else:
        first = int(rng.integers(0, len(haystack) - length + 1))
        straw = haystack[first : first + length - needle.cue]
    for depth in depths:
        at = round(depth * room)
        yield np.concatenate([[EOD], straw[:at], hidden, straw[at:room], hidden]).astype(np.int64)
    yield np.concatenate([[EOD], straw, hidden]).astype(np.int64)


def _ask(
    model: StripedHyena2, rows: Sequence[Ids], asked: int, chunk: int, progress: Callable[[int], None]
) -> list[tuple[float, float]]:
    """Accuracy and mean log-probability of the last `asked` tokens of each row."""
    ids_BL = to_batch(rows, model.embedding.weight.device)
    first = ids_BL.shape[1] - 1 - asked  # whose output predicts the first token that is asked for
    bases = torch.from_numpy(BASES.astype(np.int64)).to(ids_BL.device)
    right, log_probs = [], []
    for start, x_BLD, _ in chunks(model, ids_BL[:, :-1], most=chunk):
        stop = start + x_BLD.shape[1]
        progress(len(rows) * x_BLD.shape[1])
        if stop <= first:
            continue
        logits_BLV = model.logits(x_BLD[:, max(0, first - start) :])
        targets_BL = ids_BL[:, max(start, first) + 1 : stop + 1]
        log_probs.append(log_probs_of(logits_BLV, targets_BL))
        right.append(bases[logits_BLV[..., bases].argmax(dim=-1)] == targets_BL)
    accuracy_B = torch.cat(right, dim=1).double().mean(dim=1)
    log_prob_B = torch.cat(log_probs, dim=1).double().mean(dim=1)
    return list(zip(accuracy_B.tolist(), log_prob_B.tolist(), strict=True))
