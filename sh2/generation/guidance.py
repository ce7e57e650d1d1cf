"""Guidance: sequences that a function of the user's likes, from a model left as it is."""

# B beams, G groups of them (grown from one beam since the last choice), C candidates of a group, A allowed tokens,
# T tokens written, V vocabulary

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.generation.constraints import History
from sh2.generation.generate import End, Generation, GenerationOptions, generate_each
from sh2.generation.prompts import prefill
from sh2.model import StripedHyena2
from sh2.state import select
from sh2.tokens import Tokens, as_rows

Score = Callable[[Sequence[Generation]], Sequence[float]]
"""Judges continuations, all of one prompt: a number each, more is better."""


def best_of(
    model: StripedHyena2, prompts: Sequence[Tokens], *, n: int, score: Score, options: GenerationOptions
) -> list[Generation]:
    """Sample n continuations of each prompt, and keep the one that `score` likes best; the first of equals.

    Args:
        score: called once a prompt, with its n samples.
        options: how to sample; n stands in for its `samples`.

    Returns:
        One sample a prompt, in order.

    Raises:
        Sh2Error: n is below 1, a prompt has an id outside the vocabulary, or `score` gave no number each.
    """
    if n < 1:
        raise Sh2Error(f"n must be at least 1, not {n}")
    stream = generate_each(model, prompts, replace(options, samples=n))
    best = []
    while samples := list(islice(stream, n)):
        scores = _judge(score, samples)
        best.append(samples[scores.index(max(scores))])
    return best


def beam_search(
    model: StripedHyena2,
    prompts: Sequence[Tokens],
    *,
    width: int,
    length: int,
    score: Score | None = None,
    every: int = 1,
    alphabet: str | bytes | None = None,
    forbid: Sequence[str] = (),
    no_repeat: int | None = None,
    chunk: int = 8192,
) -> list[list[Generation]]:
    """Search for continuations of each prompt that are likely or, with `score`, good; nothing is random.

    Without `score`, the `width` likeliest beams go on after every token. With it, each beam grows by itself into its
    `width` likeliest continuations of `every` tokens; `score` then judges all of them, at most `width` squared, and the
    best `width` go on. EOD is a token like others, and every beam is `length` tokens long.

    Args:
        every: tokens between two judgements.
        alphabet, forbid, no_repeat, chunk: as in `GenerationOptions`.

    Returns:
        For each prompt its beams, best first: `width` of them, or as many as there are.

    Raises:
        Sh2Error: a setting is out of range, a prompt has an id outside the vocabulary, or `score` gave no number each.
    """
    for name, value in (("width", width), ("length", length), ("every", every), ("chunk", chunk)):
        if value < 1:
            raise Sh2Error(f"{name} must be at least 1, not {value}")
    # which checks the rest
    options = GenerationOptions(
        length=length, alphabet=alphabet, forbid=forbid, no_repeat=no_repeat, chunk=chunk, stop_at_eod=False
    )
    judge_every = length if score is None else every
    return [
        _Search(model, number, prompt, options, width).run(score, judge_every)
        for number, prompt in enumerate(as_rows(prompts, model.config.vocab_size))
    ]


def _judge(score: Score, candidates: Sequence[Generation]) -> list[float]:
    """The scores of candidates, checked."""
    scores = [float(number) for number in score(candidates)]
    if len(scores) != len(candidates):
        raise Sh2Error(f"score must return one number a sequence: {len(candidates)}, not {len(scores)}")
    if any(math.isnan(number) for number in scores):
        raise Sh2Error("score must return numbers, not NaN")
    return scores


class _Search:
    """The beams of one prompt. One that may not be continued has a log-probability of minus infinity, and is dropped
    at the next choice; until then all groups are of one size."""

    def __init__(
        self,
        model: StripedHyena2,
        number: int,
        prompt: NDArray[np.int64],
        options: GenerationOptions,
        width: int,
    ) -> None:
        self.model, self.number, self.width, self.length = model, number, width, options.length
        device, V = model.embedding.weight.device, model.config.vocab_size
        self.state, self.logits_BV = prefill(model, [prompt], chunk=options.chunk)
        self.history = History(options.constraints(), [prompt], length=self.length, vocab_size=V, device=device)
        self.allowed_A = torch.tensor(options.sampling().alphabet or range(V), device=device)
        self.groups = 1
        self.totals_B = torch.zeros(1, dtype=torch.float64, device=device)
        self.ids_BT = torch.zeros(1, 0, dtype=torch.int64, device=device)
        self.log_probs_BT = torch.zeros(1, 0, device=device)

    def run(self, score: Score | None, every: int) -> list[Generation]:
        """Grow the beams to their full length, choosing among all of them after every `every` tokens."""
        for count in range(1, self.length + 1):
            parents_B = self._grow()
            if count % every == 0 or count == self.length:
                kept = self._best(score)
                if not len(kept):
                    return []
                self._keep(kept)
                parents_B = parents_B[kept]
            if count < self.length:
                self._read(parents_B)
        return self._generations(range(len(self.ids_BT)))

    @torch.inference_mode()
    def _grow(self) -> Tensor:
        """Put the likeliest beams of every group in the place of it, one token longer; return whom each came from."""
        log_probs_BA = self.logits_BV.float().log_softmax(dim=-1)[:, self.allowed_A]
        totals_BA = self.totals_B[:, None] + log_probs_BA
        if (banned_BV := self.history.banned()) is not None:
            totals_BA = totals_BA.masked_fill(banned_BV[:, self.allowed_A], -torch.inf)
        B, A = totals_BA.shape
        totals_GC = totals_BA.reshape(self.groups, -1)
        best = totals_GC.topk(min(self.width, totals_GC.shape[1]), dim=-1)
        firsts_G = torch.arange(0, B, B // self.groups, device=totals_GC.device)
        parents_B = (firsts_G[:, None] + best.indices // A).flatten()
        choices_B = (best.indices % A).flatten()
        self.totals_B = best.values.flatten()
        self.ids_BT = torch.cat([self.ids_BT[parents_B], self.allowed_A[choices_B][:, None]], dim=1)
        new_B1 = log_probs_BA[parents_B, choices_B][:, None]
        self.log_probs_BT = torch.cat([self.log_probs_BT[parents_B], new_B1], dim=1)
        return parents_B

    @torch.inference_mode()
    def _keep(self, beams: Tensor) -> None:
        """Go on with these beams, each a group of its own."""
        self.groups = len(beams)
        self.totals_B = self.totals_B[beams]
        self.ids_BT, self.log_probs_BT = self.ids_BT[beams], self.log_probs_BT[beams]

    @torch.inference_mode()
    def _read(self, parents_B: Tensor) -> None:
        """Run the model on the beams' last tokens, each from the state of the beam that it came from."""
        ids_B = self.ids_BT[:, -1]
        self.history.select(parents_B).write(ids_B)
        self.logits_BV, self.state = self.model.step(ids_B, select(self.state, parents_B))

    def _best(self, score: Score | None) -> Tensor:
        """The beams to go on with, best first and at most `width`, by score and then by probability."""
        totals = self.totals_B.tolist()
        living = [beam for beam, total in enumerate(totals) if total > -math.inf]
        likely = [totals[beam] for beam in living]
        scores = _judge(score, self._generations(living)) if score is not None and living else likely
        ranked = sorted(zip(scores, likely, living, strict=True), key=lambda one: (-one[0], -one[1]))
        return torch.tensor([beam for *_, beam in ranked[: self.width]], dtype=torch.int64, device=self.ids_BT.device)

    def _generations(self, beams: Sequence[int]) -> list[Generation]:
        ids, log_probs = self.ids_BT.cpu().numpy(), self.log_probs_BT.cpu().numpy()
        return [
            Generation(prompt=self.number, sample=place, ids=ids[beam], log_probs=log_probs[beam], end=End.LENGTH)
            for place, beam in enumerate(beams)
        ]
