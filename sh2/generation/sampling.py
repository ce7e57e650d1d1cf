"""Choosing the next token from logits: temperature, top-k, top-p, min-p, a fixed alphabet; one random number a row."""

# B rows, V vocabulary

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from sh2.errors import Sh2Error

# beyond these, logits over the temperature leave float32, and minus infinity becomes NaN
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose a token. Temperature 0, or top_k 1, takes the likeliest."""

    temperature: float = 1.0
    top_k: int = 0  # keep the k likeliest; 0 keeps all
    top_p: float = 1.0  # keep the likeliest that together reach this probability; 1 keeps all
    min_p: float = 0.0  # keep those at least this times as likely as the likeliest; 0 keeps all
    alphabet: tuple[int, ...] | None = None  # token ids that may be chosen; None is all

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature <= HIGHEST_TEMPERATURE:
            raise Sh2Error(
                f"temperature must be 0, or lie in {LOWEST_TEMPERATURE:g}..{HIGHEST_TEMPERATURE:g}, "
                f"not {self.temperature:g}"
            )
        if self.top_k < 0:
            raise Sh2Error(f"top_k must be 0 (all) or above, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise Sh2Error(f"top_p must lie above 0 and up to 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise Sh2Error(f"min_p must lie in 0..1, not {self.min_p}")
        if self.alphabet is not None and not self.alphabet:
            raise Sh2Error("the alphabet to sample from is empty")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


def choose(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor, banned_BV: Tensor | None = None) -> Tensor:
    """Choose a token a row.

    Args:
        logits_BV: raw logits, any float dtype.
        uniforms_B: float64 in [0, 1), one a row: the only randomness, so a row's choice has no batch mates.
        banned_BV: bool, True for a token that a row may not choose, before any other filter.

    Returns:
        ids_B, int64; that of a row whose every token is banned means nothing.
    """
    logits_BV = restrict(logits_BV.float(), sampling.alphabet)
    if banned_BV is not None:
        logits_BV = logits_BV.masked_fill(banned_BV, -torch.inf)
    if sampling.greedy:
        return logits_BV.argmax(dim=-1)
    probs_BV = keep_likeliest(logits_BV, sampling).softmax(dim=-1)
    cumulative_BV = probs_BV.double().cumsum(dim=-1)
    # a token without probability adds nothing to the sum, so the first sum above the draw is never its own
    above_BV = cumulative_BV > uniforms_B[:, None] * cumulative_BV[:, -1:]
    return above_BV.int().argmax(dim=-1)


def restrict(logits_BV: Tensor, alphabet: tuple[int, ...] | None) -> Tensor:
    """Give every token outside the alphabet a logit of minus infinity."""
    if alphabet is None:
        return logits_BV
    return logits_BV.masked_fill(_outside(alphabet, logits_BV.shape[-1], logits_BV.device), -torch.inf)


@functools.lru_cache(maxsize=8)
def _outside(alphabet: tuple[int, ...], vocab_size: int, device: torch.device) -> Tensor:
    """True for the tokens outside the alphabet, bool [V]; made once, as a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        outside_V = torch.ones(vocab_size, dtype=torch.bool)
        outside_V[list(alphabet)] = False
        return outside_V.to(device)


def keep_likeliest(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Keep top-k, divide by the temperature, keep what top-p and min-p keep; the rest becomes minus infinity."""
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_p < 1:
        ascending = logits_BV.sort(dim=-1)
        cumulative_BV = ascending.values.softmax(dim=-1).cumsum(dim=-1)
        tail_BV = cumulative_BV <= 1 - sampling.top_p
        tail_BV[:, -1] = False  # the likeliest stays, however small top-p
        logits_BV = logits_BV.masked_fill(tail_BV.gather(-1, ascending.indices.argsort(dim=-1)), -torch.inf)
    if sampling.min_p > 0:
        ratios_BV = (logits_BV.double() - logits_BV.double().amax(dim=-1, keepdim=True)).exp()
        logits_BV = logits_BV.masked_fill(ratios_BV < sampling.min_p, -torch.inf)
    return logits_BV
