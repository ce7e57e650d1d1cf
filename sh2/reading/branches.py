"""Scores of sequences that leave a common one: what they share is read once, and each pays for what follows alone.

A family is a reference and its branches. The reference is read up to a cut, a little before one or several branches
leave it, and its state there is continued by a row for each of them, and by a row for the reference itself: in one
call, so that both sides of a difference are rounded alike, and far from where they differ to the same bits.

Families are read side by side, from cut to cut of any of them, and share the calls there. Sums are taken on the device
and fetched a batch later, so that a GPU never waits for this process. Knows nothing of variants, strands or files.
"""

# F families, R rows, L length, N branches, V vocabulary

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.planning.accounting import kv_cache_bytes, state_bytes
from sh2.reading.chunks import OutOfMemoryError, chunks
from sh2.reading.fetch import fetched
from sh2.reading.scoring import log_probs_of
from sh2.state import ModelState, repeat, select
from sh2.tokens import EOD, as_ids, to_device

_LEAST_SHARED = 64  # tokens: reading less than this apart would cost more than it saves
_SEEN = 6  # tokens that the rows of a call keep in memory, for one that is run at once
_LEAST_SEEN = 1024  # tokens that a row counts for, at least: filters have states, too

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
    """Score every branch of every family. No score depends on its batch mates.

    Args:
        reuse: read what branches share with their reference once; otherwise every row is read whole.
        spacing: branches that leave in the same stretch of so many tokens continue one state, that where the stretch
            begins, and read the tokens up to their start anew. 1 keeps a state for every start.
        max_tokens: tokens that are run at once, at most; of a few times as many, keys and values are kept.
        chunk: tokens of one row that are run at once, at most.
        progress: called with the number of tokens, of all rows, of every call of the model.

    Returns:
        For each family, the scores of its branches in their order.

    Raises:
        Sh2Error: an id is outside the vocabulary, or not even two rows fit into memory.
    """
    for name, value in (("spacing", spacing), ("max_tokens", max_tokens), ("chunk", chunk)):
        if value < 1:
            raise Sh2Error(f"{name} must be at least 1, not {value}")
    plans = [_Plan(family, model.config.vocab_size, spacing if reuse else None) for family in families]
    budget = _Budget.of(model, max_tokens, chunk)
    before: _Reader | None = None
    for batch in _batches(plans, budget):
        reader = _Reader(model, batch, budget, progress)
        reader.read()
        if before is not None:
            before.fetch()
        before = reader
    if before is not None:
        before.fetch()
    return [plan.scores() for plan in plans]


class _Plan:
    """A family: its tokens, the cuts at which branches leave its reference, and the scores as they come."""

    def __init__(self, family: Family, vocab_size: int, spacing: int | None) -> None:
        self.branches = family.branches
        self.reference = as_ids(family.reference, vocab_size)
        self.ids = [as_ids(branch.ids, vocab_size) for branch in family.branches]
        self.at: dict[int, list[int]] = {}  # the branches of each cut
        for branch, place in enumerate(family.branches):
            cut = 0 if spacing is None else place.start - place.start % spacing
            self.at.setdefault(cut if cut >= _LEAST_SHARED else 0, []).append(branch)
        self.last = max(self.at, default=0)
        self._scores: dict[int, BranchScore] = {}

    def row(self, branch: int, cut: int) -> NDArray[np.int64]:
        """What follows the cut in a branch."""
        return np.concatenate([self.reference[cut : self.branches[branch].start], self.ids[branch]])

    def length(self, branch: int, cut: int) -> int:
        """Tokens that follow the cut in a branch or in what it is compared with, whichever are more."""
        place = self.branches[branch]
        return max(place.start + len(self.ids[branch]), place.end) - cut

    def keep(self, branch: int, reference: float, delta: float) -> None:
        """Take in the log-likelihood of the reference, and how much more that of the branch is."""
        place = self.branches[branch]
        self._scores[branch] = BranchScore(
            reference=reference,
            branch=reference + delta,
            delta=delta,
            num_reference=max(0, place.end - 1),
            num_branch=max(0, place.start + len(self.ids[branch]) - 1),
        )

    def scores(self) -> list[BranchScore]:
        return [self._scores[branch] for branch in range(len(self.branches))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Budget:
    """What may be run and kept at once. room: bytes for what rows keep, half of what a GPU has beside the weights.

    Of a GPU's whole memory, not of what is free: that another program runs beside must not change the calls.
    """

    config: ModelConfig
    dtype: str
    max_tokens: int
    chunk: int
    room: int

    @classmethod
    def of(cls, model: StripedHyena2, max_tokens: int, chunk: int) -> "_Budget":
        tensors = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_cuda]
        gpus = {tensor.device for tensor in tensors}
        memory = sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)
        free = memory - sum(tensor.nbytes for tensor in tensors)
        dtype = "bf16" if model.embedding.weight.element_size() == 2 else "fp32"
        room = max(0, free) // 2 if gpus else 1 << 62
        return cls(config=model.config, dtype=dtype, max_tokens=max_tokens, chunk=chunk, room=room)

    def rows(self, tokens: int) -> int:
        """Rows of so many tokens that a call may have."""
        return min(_SEEN * self.max_tokens // max(_LEAST_SEEN, tokens), self.room // self._kept(tokens))

    def families(self, tokens: int) -> int:
        """Families that may be read side by side, up to so many tokens."""
        return min(self.max_tokens // max(_LEAST_SEEN, tokens), self.room // 2 // self._kept(tokens))

    def _kept(self, tokens: int) -> int:
        return kv_cache_bytes(self.config, tokens, self.dtype) + state_bytes(self.config, self.dtype) + 1


def _batches(plans: Sequence[_Plan], budget: _Budget) -> Iterator[list[_Plan]]:
    """Families that are read side by side, as many as the budget allows; those that end last first."""
    batch: list[_Plan] = []
    for plan in sorted((plan for plan in plans if plan.at), key=lambda plan: (plan.last, *plan.at)):
        if batch and len(batch) >= budget.families(plan.last):
            yield batch[::-1]
            batch = []
        batch.append(plan)
    if batch:
        yield batch[::-1]


# the branches of a call by their family, which is a row of the trunk
_Call = dict[int, list[int]]


class _Reader:
    """Reads the references of a batch from cut to cut (the trunk), and at each cut the rows that leave there."""

    def __init__(
        self, model: StripedHyena2, plans: Sequence[_Plan], budget: _Budget, progress: Callable[[int], None]
    ) -> None:
        self.model, self.plans, self.budget, self.progress = model, plans, budget, progress
        self.device = model.embedding.weight.device
        self._found: list[Tensor] = []  # [N, 2] of each call: log-likelihood of the reference, and delta
        self._whose: list[tuple[_Plan, int]] = []  # of all these rows, in order

    def read(self) -> None:
        """Run the model over all of the batch."""
        longest = self.plans[0].last
        ids_FL = to_device(_stack([plan.reference[:longest] for plan in self.plans], longest), self.device)
        trunk = _Trunk(torch.zeros(len(self.plans), dtype=torch.float64, device=self.device))
        done = 0
        for cut in sorted(set(chain.from_iterable(plan.at for plan in self.plans))):
            going_on = sum(plan.last >= cut for plan in self.plans)
            if cut > done:
                trunk = trunk.first(going_on)
                log_probs_FL, last_FV, state = self._follow(ids_FL[:going_on, done:cut], trunk.state, trunk.last_FV)
                trunk = _Trunk(trunk.sums_F + log_probs_FL.sum(dim=1, dtype=torch.float64), last_FV, state)
                done = cut
            for call in self._calls(cut):
                self._leave(cut, call, trunk)

    def fetch(self) -> None:
        """Wait for the scores, and give them to their families."""
        found_N2 = fetched(torch.cat(self._found))
        for (plan, branch), (reference, delta) in zip(self._whose, found_N2.tolist(), strict=True):
            plan.keep(branch, reference, delta)

    def _calls(self, cut: int) -> Iterator[_Call]:
        """The branches that leave at a cut, in calls: of rows of about one length, and of any number of families."""
        branches = sorted(
            (-plan.length(branch, cut), family, branch)
            for family, plan in enumerate(self.plans)
            for branch in plan.at.get(cut, ())
        )
        while branches:
            longest = -branches[0][0]
            alike = [(family, branch) for length, family, branch in branches if -2 * length > longest]
            # those without a token are compared with nothing, and are as good in any call
            alike = alike or [(family, branch) for _, family, branch in branches]
            branches = branches[len(alike) :]
            yield from self._share(alike, max(2, self.budget.rows(cut + longest)))

    def _share(self, branches: Sequence[tuple[int, int]], most: int) -> Iterator[_Call]:
        """Calls of `most` rows: with every family's branches its reference. One that is too large is cut evenly."""
        families: _Call = {}
        for family, branch in branches:
            families.setdefault(family, []).append(branch)
        call: _Call = {}
        rows = 0
        for family, own in families.items():
            for part in np.array_split(own, -(-len(own) // (most - 1))):
                if rows + 1 + len(part) > most:
                    yield call
                    call, rows = {}, 0
                call[family] = part.tolist()
                rows += 1 + len(part)
        yield call

    def _leave(self, cut: int, call: _Call, trunk: "_Trunk") -> None:
        """Read the rows of a call; in halves, if they do not fit into memory together."""
        try:
            found_N2 = self._rows(cut, call, trunk)
        except (torch.OutOfMemoryError, OutOfMemoryError):
            if sum(map(len, call.values())) < 2:
                raise
            found_N2 = None
        if found_N2 is not None:
            self._found.append(found_N2)
            self._whose += [(self.plans[family], branch) for family, own in call.items() for branch in own]
            return
        # not within the handler: there the error still holds what was allocated
        branches = [(family, branch) for family, own in call.items() for branch in own]
        for half in (branches[: len(branches) // 2], branches[len(branches) // 2 :]):
            for part in self._share(half, 1 + len(branches)):
                self._leave(cut, part, trunk)

    def _rows(self, cut: int, call: _Call, trunk: "_Trunk") -> Tensor:
        """Read of each family its reference, then its branches; what they sum up to [N, 2], float64."""
        rows: list[NDArray[np.int64]] = []
        families: list[int] = []
        places: list[tuple[int, int, int, int, int]] = []  # family, rows of reference and branch, where each ends...
        starts: list[int] = []  # ... and where they part
        for family, branches in call.items():
            plan, first = self.plans[family], len(rows)
            rows.append(plan.reference[cut : max(plan.branches[branch].end for branch in branches)])
            for branch in branches:
                place = plan.branches[branch]
                places.append((family, first, len(rows), place.end - cut, place.start - cut + len(plan.ids[branch])))
                starts.append(place.start - cut)
                rows.append(plan.row(branch, cut))
            families += [family] * (1 + len(branches))
        # what follows a row's end is never looked at, and cannot change what comes before
        ids_RL = to_device(_stack(rows, max(1, *map(len, rows))), self.device)
        leaving = trunk.leave(families, ids_RL.shape[1], self.device)
        log_probs_RL, _, _ = self._follow(ids_RL, leaving.state, leaving.last_FV)
        sums_RL = F.pad(log_probs_RL.cumsum(dim=1, dtype=torch.float64), (1, 0))
        family_N, one_N, other_N, one_end_N, other_end_N = to_device(np.array(places).T.copy(), self.device)
        start_N = to_device(np.array(starts), self.device)
        one_sum_N, other_sum_N = sums_RL[one_N, one_end_N], sums_RL[other_N, other_end_N]
        delta_N = (other_sum_N - sums_RL[other_N, start_N]) - (one_sum_N - sums_RL[one_N, start_N])
        return torch.stack([trunk.sums_F[family_N] + one_sum_N, delta_N], dim=1)

    def _follow(
        self, ids_RL: Tensor, state: ModelState | None, last_RV: Tensor | None
    ) -> tuple[Tensor, Tensor | None, ModelState | None]:
        """Read rows on; last_RV are the logits of their first token, which without any has a log-probability of 0.

        Returns:
            The log-probability of every token [R, L], the logits of what follows them, and the state after them.
        """
        parts: list[Tensor] = []
        most = min(self.budget.chunk, max(1, self.budget.max_tokens // ids_RL.shape[0]))
        for start, x_RLD, after in chunks(self.model, ids_RL, most=most, state=state):
            logits_RLV = self.model.logits(x_RLD)
            ids_RP = ids_RL[:, start : start + x_RLD.shape[1]]
            first_R1 = (
                torch.zeros_like(ids_RP[:, :1], dtype=torch.float32)
                if last_RV is None
                else log_probs_of(last_RV[:, None], ids_RP[:, :1])
            )
            parts += [first_R1, log_probs_of(logits_RLV[:, :-1], ids_RP[:, 1:])]
            last_RV, state = logits_RLV[:, -1], after
            self.progress(ids_RP.numel())
        return torch.cat(parts, dim=1), last_RV, state


@dataclass(frozen=True, slots=True)
class _Trunk:
    """References so far: the sum of their log-probabilities, the logits of what follows, and their state."""

    sums_F: Tensor  # float64
    last_FV: Tensor | None = None
    state: ModelState | None = None

    def first(self, count: int) -> "_Trunk":
        """Only the first rows."""
        if count == len(self.sums_F) or self.state is None or self.last_FV is None:
            return _Trunk(self.sums_F[:count], self.last_FV, self.state)
        rows = torch.arange(count, device=self.sums_F.device)
        return _Trunk(self.sums_F[:count], self.last_FV[:count], select(self.state, rows))

    def leave(self, families: Sequence[int], length: int, device: torch.device) -> "_Trunk":
        """A row for each of these, which so many tokens are to follow."""
        which_R = to_device(np.array(families), device)
        if self.state is None or self.last_FV is None:
            return _Trunk(self.sums_F[which_R])
        alone = len(self.sums_F) == 1
        state = repeat(self.state, len(families), room=length) if alone else select(self.state, which_R, room=length)
        return _Trunk(self.sums_F[which_R], self.last_FV[which_R], state)


def _stack(rows: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
    """Rows under each other, filled up behind."""
    stacked = np.full((len(rows), length), EOD, dtype=np.int64)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = row
    return stacked
