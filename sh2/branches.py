"""Scores of sequences that leave a common one: what they share is read once, and each pays for what follows alone.

A family is a reference and its branches. The reference is read up to a cut, a little before one or several branches
leave it, and its state there is continued by a row for each of them, and by a row for the reference itself: in one
batch, so that both sides of a difference are rounded alike, and far from where they differ to the same bits.

Knows nothing of variants, strands or files.
"""

# F families, R rows, L length, V vocabulary

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.chunks import chunks
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.scoring import log_probs_of
from sh2.state import ModelState, repeat, select
from sh2.tokens import EOD, as_ids, to_batch

_LEAST_SHARED = 64  # tokens: reading less than this apart would cost more than it saves

Ids = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A sequence that leaves a reference: reference[:start] and then ids, to be compared with reference[start:end]."""

    start: int
    ids: Ids
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A reference [L] and the branches that leave it; an empty `ids` and `end` at `start` compare nothing.

    Raises:
        Sh2Error: the reference is empty, or a branch leaves it or ends outside of it.
    """

    reference: Ids
    branches: Sequence[Branch]

    def __post_init__(self) -> None:
        if not len(self.reference):
            raise Sh2Error("the reference of a family is empty: there is nothing to score")
        for branch in self.branches:
            if not 0 <= branch.start <= branch.end <= len(self.reference):
                raise Sh2Error(
                    f"a branch must start and end, in that order, in 0..{len(self.reference)}, the length of its"
                    f" reference, not at {branch.start} and {branch.end}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchScore:
    """Log-likelihoods, natural logarithm: of the reference up to where the comparison ends, and of the branch.

    `delta` is branch minus reference, summed over what follows the start alone: what comes before is the same. The
    first token of all has no prediction and is not counted.
    """

    reference: float
    branch: float
    delta: float
    num_reference: int  # tokens counted
    num_branch: int


@torch.inference_mode()
def score_families(
    model: StripedHyena2,
    families: Sequence[Family],
    *,
    reuse: bool = True,
    spacing: int = 16,
    max_tokens: int = 65_536,
    chunk: int = 8192,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[BranchScore]]:
    """Score every branch of every family.

    Families whose branches leave at the same places share a batch. No score depends on its batch mates.

    Args:
        reuse: read what branches share with their reference once; otherwise every row is read whole.
        spacing: branches that leave within so many tokens continue one state, and read the tokens between it and their
            start anew. 1 keeps a state for every start.
        max_tokens: tokens of one batch and chunk, at most.
        progress: called with the number of branches that were scored.

    Returns:
        For each family, the scores of its branches in their order.

    Raises:
        Sh2Error: an id is outside the vocabulary, or a batch does not fit into memory.
    """
    for name, value in (("spacing", spacing), ("max_tokens", max_tokens), ("chunk", chunk)):
        if value < 1:
            raise Sh2Error(f"{name} must be at least 1, not {value}")
    plans = [_Plan(number, family, model, reuse, spacing) for number, family in enumerate(families)]
    for batch in _batches(plans, max_tokens, chunk):
        _Reader(model, batch, max_tokens, chunk, progress).read()
    return [plan.scores() for plan in plans]


class _Plan:
    """A family: its tokens, the cuts at which rows leave its reference, the length of the longest of them, and the
    scores as they come."""

    def __init__(self, number: int, family: Family, model: StripedHyena2, reuse: bool, spacing: int) -> None:
        V = model.config.vocab_size
        self.number = number
        self.branches = family.branches
        self.reference = as_ids(family.reference, V)
        self.ids = [as_ids(branch.ids, V) for branch in family.branches]
        self.at: dict[int, list[int]] = {}  # the branches of each cut, cuts ascending
        cut = None
        for branch in sorted(range(len(self.branches)), key=lambda branch: self.branches[branch].start):
            start = self.branches[branch].start
            if cut is None or start >= cut + spacing:
                cut = start if reuse and start >= _LEAST_SHARED else 0
            self.at.setdefault(cut, []).append(branch)
        self.longest = max(
            (
                max(self.branches[branch].start + len(self.ids[branch]), self.branches[branch].end) - cut
                for cut, branches in self.at.items()
                for branch in branches
            ),
            default=0,
        )
        self._scores: dict[int, BranchScore] = {}

    def row(self, branch: int, cut: int) -> NDArray[np.int64]:
        """What follows the cut in a branch."""
        return np.concatenate([self.reference[cut : self.branches[branch].start], self.ids[branch]])

    def keep(self, branch: int, cut: int, trunk: float, sums: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        """Take in the running sums of log-probabilities of the reference's row and of the branch's, from the cut on."""
        start, end, length = self.branches[branch].start, self.branches[branch].end, len(self.ids[branch])
        reference, own = sums
        first = start - cut
        delta = (own[first + length] - own[first]) - (reference[end - cut] - reference[first])
        whole = trunk + float(reference[end - cut])
        self._scores[branch] = BranchScore(
            reference=whole,
            branch=whole + float(delta),
            delta=float(delta),
            num_reference=max(0, end - 1),
            num_branch=max(0, start + length - 1),
        )

    def scores(self) -> list[BranchScore]:
        return [self._scores[branch] for branch in range(len(self.branches))]


def _batches(plans: Sequence[_Plan], max_tokens: int, chunk: int) -> Iterator[list[_Plan]]:
    """Families with the same cuts, together as long as their rows stay within the budget."""

    def cuts(plan: _Plan) -> tuple[int, ...]:
        return tuple(plan.at)

    for _, group in groupby(sorted((plan for plan in plans if plan.at), key=cuts), key=cuts):
        batch: list[_Plan] = []
        spent = 0
        for plan in group:
            rows = 1 + max(map(len, plan.at.values()))
            cost = rows * min(chunk, max(plan.longest, *plan.at))
            if batch and spent + cost > max_tokens:
                yield batch
                batch, spent = [], 0
            batch.append(plan)
            spent += cost
        yield batch


class _Reader:
    """Reads the references of a batch from cut to cut, and at each cut the rows that leave there."""

    def __init__(
        self,
        model: StripedHyena2,
        plans: Sequence[_Plan],
        max_tokens: int,
        chunk: int,
        progress: Callable[[int], None],
    ) -> None:
        self.model, self.plans, self.max_tokens, self.chunk, self.progress = model, plans, max_tokens, chunk, progress
        self.device = model.embedding.weight.device

    def read(self) -> None:
        """Score all branches of the batch."""
        cuts = list(self.plans[0].at)
        ids_FL = to_batch([plan.reference[: cuts[-1]] for plan in self.plans], self.device)
        trunk_F = np.zeros(len(self.plans))
        state: ModelState | None = None
        last_FV: Tensor | None = None
        done = 0
        for cut in cuts:
            if cut > done:
                log_probs_FL, last_FV, state = self._follow(ids_FL[:, done:cut], state, last_FV)
                trunk_F += log_probs_FL.sum(axis=1, dtype=np.float64)
                done = cut
            for jobs in self._calls(cut):
                self._leave(cut, jobs, trunk_F, state, last_FV)

    def _calls(self, cut: int) -> Iterator[list[tuple[int, list[int]]]]:
        """The families and branches of each call at a cut; where a family's are too many, some in each."""
        call: list[tuple[int, list[int]]] = []
        spent = 0
        for family, plan in enumerate(self.plans):
            width = min(self.chunk, plan.longest)
            most = max(1, self.max_tokens // width - 1)
            branches = plan.at[cut]
            for first in range(0, len(branches), most):
                part = branches[first : first + most]
                cost = width * (1 + len(part))
                if call and spent + cost > self.max_tokens:
                    yield call
                    call, spent = [], 0
                call.append((family, part))
                spent += cost
        yield call

    def _leave(
        self,
        cut: int,
        jobs: Sequence[tuple[int, list[int]]],
        trunk_F: NDArray[np.float64],
        state: ModelState | None,
        last_FV: Tensor | None,
    ) -> None:
        """Read the rows that leave at a cut: of each family its reference's, then its branches'."""
        rows: list[NDArray[np.int64]] = []
        families: list[int] = []
        for family, branches in jobs:
            plan = self.plans[family]
            end = max(plan.branches[branch].end for branch in branches)
            rows += [plan.reference[cut:end], *(plan.row(branch, cut) for branch in branches)]
            families += [family] * (1 + len(branches))
        length = max(1, *map(len, rows))
        # what follows a row's end is never looked at, and cannot change what comes before
        padded = [np.pad(row, (0, length - len(row)), constant_values=EOD) for row in rows]
        which_R = torch.tensor(families, device=self.device)
        if state is not None:
            state = repeat(state, len(rows)) if len(self.plans) == 1 else select(state, which_R)
        log_probs_RL, _, _ = self._follow(
            to_batch(padded, self.device), state, None if last_FV is None else last_FV[which_R]
        )
        sums_RL = np.pad(log_probs_RL.cumsum(axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        row = 0
        for family, branches in jobs:
            for place, branch in enumerate(branches, start=1):
                self.plans[family].keep(branch, cut, float(trunk_F[family]), (sums_RL[row], sums_RL[row + place]))
            row += 1 + len(branches)
            self.progress(len(branches))

    def _follow(
        self, ids_RL: Tensor, state: ModelState | None, last_RV: Tensor | None
    ) -> tuple[NDArray[np.float32], Tensor | None, ModelState | None]:
        """Read rows on; last_RV are the logits of their first token, which without any has a log-probability of 0.

        Returns:
            The log-probability of every token [R, L], the logits of what follows them, and the state after them.
        """
        parts: list[Tensor] = []
        for start, x_RLD, after in chunks(self.model, ids_RL, most=self.chunk, state=state):
            logits_RLV = self.model.logits(x_RLD)
            ids_RP = ids_RL[:, start : start + x_RLD.shape[1]]
            first_R1 = (
                torch.zeros_like(ids_RP[:, :1], dtype=torch.float32)
                if last_RV is None
                else log_probs_of(last_RV[:, None], ids_RP[:, :1])
            )
            parts += [first_R1, log_probs_of(logits_RLV[:, :-1], ids_RP[:, 1:])]
            last_RV, state = logits_RLV[:, -1], after
        return torch.cat(parts, dim=1).cpu().numpy(), last_RV, state
