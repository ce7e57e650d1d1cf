"""A copy model: predicts a text from stretches of other sequences that it goes on like, beside a language model.

As compressors of DNA do. A copy expert (the expert model XM: Cao, Dix, Allison, Mears 2007, "A simple statistical
algorithm for biological sequence compression") holds a text against a sequence of the memory, base for base, and says
that the next base is the one there; it bears substitutions, and after an insertion or a deletion another takes over. A
spaced seed begins it, every third base free (PatternHunter: Ma, Tromp, Li 2002), because two genomes differ most at the
third positions of codons. How often an expert is right is counted by how it did lately, and a small network that learns
while it reads mixes all of them with the language model (as GeCo3 does: Silva et al. 2020). Nothing is fitted before:
table and network begin at the same values for every text, and learn from a base after they have predicted it. Or they
have learned from a part of the memory that was held out of it, and nothing is learned from the text: such a reader is
static, as a model is whose weights stay.

The memory is both strands of the sequences, and of the text so far, unless the reader is static. Upper and lower case
are the same base; what is not ACGT is never predicted, and stands for an A where an expert looks back over it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.seeds import WORD, Ints, Runs, Words, find_runs, same_bases, spread
from data.sequence import BASE_CODES

# N experts that speak in a chunk, one row a position; T positions; K contexts; F, G features; D, H of the network
Floats = NDArray[np.float32]

_ALIVE = 16  # of the last 31 bases, so many were right, or an expert is silent
_CHUNK = 8192
_WINDOW, _LEARNED_FROM = 8192, 1 << 21  # bases of a window that is held out of a memory, and of all of them
_BATCH = 64
_BEST = 6  # experts that are heard one by one, and not only in the sum
_NEAR = 3  # bases before, of the text, and after, of the best expert's sequence
_HIDDEN = 64
_RATE, _SLOWER_AFTER = 2e-3, 200_000  # of learning, and the bases from which on it falls with their root
_MOST_ODDS = 20.0  # of all experts together: at the end of a repeat, hundreds are wrong at once
_FLOOR = 2.0**-14  # of the probability is shared by the four bases, so that none costs more than 16 bits

_ONE, _TWO, _THREE = (np.uint64(number) for number in (1, 2, 3))
_CODON = np.uint64(sum(1 << 2 * back for back in range(3, 31, 3)))  # 3, 6, ... 30 bases before the next one
_OLDER = np.array([17, 23, 27])  # bounds of the hits among the 32 bases before the last 31
_CONTEXTS = 11 * 22 * 2 * 4  # hits 3, 6, ... 30 bases back, those at the others of 31, the last one, older ones


class Trust:
    """What the copy model learns: how often an expert is right, and how all of them are mixed."""

    def __init__(self) -> None:
        self.table, self.network = _Table(), _Network()


def copied_log_probs(
    memory: Sequence[NDArray[np.uint8]],
    text: NDArray[np.uint8],
    log_probs_L4: Floats,
    *,
    trust: Trust | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Floats:
    """Log-probability of every base of a text, by a language model and what the memory holds alike.

    A base is predicted from those before it, the memory and its own row of `log_probs_L4` alone. Several records are
    best read as one text, with an N between them: the memory is searched once, and what was learnt is kept.

    Args:
        memory: uint8 sequences (ASCII) to copy from, read on both strands.
        text: uint8 [L] (ASCII).
        log_probs_L4: the language model's, of A, C, G and T at every position; all equal for none.
        trust: of `learn_trust`. It stays as it is, and the text so far is no memory; None learns on the way, and looks
            back.
        progress: called with the number of positions that were newly predicted.

    Returns:
        float32 [L], natural logarithms; nan where there is no A, C, G or T.

    Raises:
        DataError: the log-probabilities are not four for every position of the text.
    """
    if trust is None:
        return _read([*memory, text], text, log_probs_L4, Trust(), progress, learns=True, looks_back=True)
    return _read(memory, text, log_probs_L4, trust, progress)


def learn_trust(
    memory: Sequence[NDArray[np.uint8]],
    text: NDArray[np.uint8],
    log_probs_L4: Floats,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Trust:
    """Learn how far to trust a memory from a text that was held out of it; `copied_log_probs` tells the rest.

    Raises:
        DataError: the log-probabilities are not four for every position of the text.
    """
    trust = Trust()
    _read(memory, text, log_probs_L4, trust, progress, learns=True)
    return trust


def hold_out(memory: Sequence[NDArray[np.uint8]]) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Cut windows out of a memory: what is left, in its order, and the windows, in one of chance.

    An eighth of the memory, or 2 million bases of a large one, in windows of 8,192 bases, or a 64th of a small one.
    """
    total = sum(len(sequence) for sequence in memory)
    size = min(_WINDOW, total // 64 + 1)
    pieces = [sequence[at : at + size] for sequence in memory for at in range(0, len(sequence), size)]
    every = max(8, total // _LEARNED_FROM)
    held = list(range(every // 2, len(pieces), every))
    left = sorted(set(range(len(pieces))).difference(held))
    return [pieces[at] for at in left], [pieces[at] for at in np.random.default_rng(0).permutation(held)]


def _read(
    memory: Sequence[NDArray[np.uint8]],
    text: NDArray[np.uint8],
    log_probs_L4: Floats,
    trust: Trust,
    progress: Callable[[int], None],
    *,
    learns: bool = False,
    looks_back: bool = False,
) -> Floats:
    """Predict a text, and learn from it; one that looks back is the last sequence of the memory too."""
    length = len(text)
    if log_probs_L4.shape != (length, 4):
        raise DataError(f"log-probabilities of shape {list(log_probs_L4.shape)} do not fit a text of {length} bases")
    codes = BASE_CODES[text]
    whole = np.concatenate([codes[:0], *(BASE_CODES[sequence] for sequence in memory)]) & np.uint8(3)
    text_words, words = Words(codes & np.uint8(3)), Words(np.concatenate([whole, np.uint8(3) - whole[::-1]]))
    runs = find_runs(codes, text_words, words, len(whole) - length if looks_back else None)
    log_probs = np.full(length, np.nan, dtype=np.float32)
    table, network = trust.table, trust.network
    for first, last, chosen in _chunks(length, runs):
        experts = _Experts.of(first, last, chosen, text_words, words)
        votes_T4F, around_TG = _features(experts, table, words, codes, first, last)
        votes_T4F[:, :, 0] = np.maximum(log_probs_L4[first:last], -20.0)
        for at in range(first, last, _BATCH):
            to = min(at + _BATCH, last)
            batch = votes_T4F[at - first : to - first]
            log_p = network.predict(batch, around_TG[at - first : to - first])
            scored = np.flatnonzero(codes[at:to] < 4)
            found = np.exp(log_p[scored, codes[at + scored]])
            log_probs[at + scored] = np.log((1 - _FLOOR) * found + _FLOOR / 4)
            if learns:
                network.learn(batch, codes[at:to], _RATE / (1 + at / _SLOWER_AFTER) ** 0.5)
        if learns:
            table.learn(experts, codes[first:last])
        progress(last - first)
    return log_probs


def _chunks(length: int, runs: Runs) -> Iterator[tuple[int, int, Runs]]:
    """Chunks of the text, short ones first so that learning begins early, and the runs that reach into each."""
    first, begun, open_runs = 0, 0, runs[:0]
    while first < length:
        last = min(length, first + min(max(first, _CHUNK // 32), _CHUNK))
        begun, before = int(np.searchsorted(runs.start, last)), begun
        chosen = Runs.joined([open_runs, runs[before:begun]])
        yield first, last, chosen
        first, open_runs = last, chosen[chosen.end > last]


@dataclass(frozen=True, slots=True)
class _Experts:
    """The experts that speak in a chunk, one row for each at each position: position in the chunk, base that it says,
    how it did lately, and where that base is in the memory."""

    position_N: Ints
    base_N: Ints
    context_N: Ints
    place_N: Ints

    @classmethod
    def of(cls, first: int, last: int, runs: Runs, text: Words, words: Words) -> Self:
        start = np.maximum(runs.start, first)
        run, number = spread(np.minimum(runs.end, last) - start)
        position = start[run] + number
        place = position + runs.shift[run]
        here = words.ending(place)
        # the next base is not known yet: the text's is one base behind, and so its last place is no hit
        hits = same_bases(text.ending(position - 1) << _TWO, here) & ~_ONE
        alive = np.flatnonzero(np.bitwise_count(hits) >= _ALIVE)
        position, place, hits = position[alive], place[alive], hits[alive]
        of_codon = np.bitwise_count(hits & _CODON)
        others = np.bitwise_count(hits) - of_codon
        older = np.bitwise_count(same_bases(text.ending(position - WORD), words.ending(place - WORD)))
        context = of_codon.astype(np.int64) * 22 + others
        context = context * 2 + (hits >> _TWO & _ONE).astype(np.int64)
        context = context * 4 + np.searchsorted(_OLDER, older, side="right")
        return cls(position - first, (here[alive] & _THREE).astype(np.int64), context, place)


class _Table:
    """Counts of the bases that came where an expert in a context said a base."""

    def __init__(self) -> None:
        of_codon, others, _, _ = np.indices((11, 22, 2, 4)).reshape(4, -1)
        hit = 0.05 + 0.9 * (2 * of_codon / 10 + others / 21) / 3
        # as if each context had been seen four times with each base
        self._counts_KBB = 4 * np.where(np.eye(4, dtype=np.bool_), hit[:, None, None], (1 - hit[:, None, None]) / 3)

    def probabilities(self) -> Floats:
        """[K, said, 4], float32."""
        return (self._counts_KBB / self._counts_KBB.sum(axis=2, keepdims=True)).astype(np.float32)

    def learn(self, experts: _Experts, codes_T: NDArray[np.uint8]) -> None:
        true = codes_T[experts.position_N].astype(np.int64)
        cells = ((experts.context_N * 4 + experts.base_N) * 4 + true)[true < 4]
        self._counts_KBB += np.bincount(cells, minlength=self._counts_KBB.size).reshape(self._counts_KBB.shape)


def _features(
    experts: _Experts, table: _Table, words: Words, codes: NDArray[np.uint8], first: int, last: int
) -> tuple[Floats, Floats]:
    """What the network sees at the positions of a chunk.

    Returns:
        For each base, float32 [T, 4, F]: room for the language model, the log-odds of all experts, those of the best;
        and float32 [T, G]: how many and how good the experts are, and which bases stand near.
    """
    size = last - first
    probabilities_KBB = table.probabilities()
    odds = np.log(4 * probabilities_KBB).reshape(-1, 4)
    hit_K = np.einsum("kbb->k", probabilities_KBB) / 4
    position, said = experts.position_N, experts.context_N * 4 + experts.base_N
    many = np.bincount(position, minlength=size)
    votes_T4F = np.zeros((size, 4, 2 + _BEST), dtype=np.float32)
    for base in range(4):
        together_T = np.bincount(position, weights=odds[said, base], minlength=size)
        votes_T4F[:, base, 1] = np.clip(together_T, -_MOST_ODDS, _MOST_ODDS)
    around_TG = np.zeros((size, 2 + _BEST + 8 * _NEAR), dtype=np.float32)
    around_TG[:, 0] = np.log1p(many)
    around_TG[:, 1] = np.bincount(position, weights=hit_K[experts.context_N], minlength=size) / np.maximum(many, 1)
    # sorted by position, the best first: all in one number, which numpy sorts fastest
    rank_K = np.argsort(np.argsort(-hit_K, kind="stable"))
    keys = (position * _CONTEXTS + rank_K[experts.context_N]) * (len(position) + 1) + np.arange(len(position))
    order = np.sort(keys) % (len(position) + 1)
    begin = np.cumsum(many) - many
    for number in range(_BEST):
        has = np.flatnonzero(many > number)
        expert = order[begin[has] + number]
        votes_T4F[has, :, 2 + number] = odds[said[expert]]
        around_TG[has, 2 + number] = hit_K[experts.context_N[expert]]
    has = np.flatnonzero(many)
    place = experts.place_N[order[begin[has]]]
    for number in range(_NEAR):
        column = 2 + _BEST + 8 * number
        at = np.arange(max(first, number + 1), last)
        at = at[codes[at - number - 1] < 4]
        around_TG[at - first, column + codes[at - number - 1]] = 1
        ahead = words.ending(np.minimum(place + number + 1, words.length - 1)) & _THREE
        around_TG[has, column + 4 + ahead.astype(np.int64)] = 1
    return votes_T4F, around_TG


class _Network:
    """Mixes votes: a weighted sum that is the same for all four bases, and one hidden layer; trained by Adam."""

    def __init__(self) -> None:
        inputs = 4 * (2 + _BEST) + 2 + _BEST + 8 * _NEAR
        random = np.random.default_rng(0).standard_normal((inputs, _HIDDEN)) / inputs**0.5
        weights = np.concatenate([[1.0, 0.05], 0.4 / np.arange(2, 2 + _BEST)])
        shapes = (weights, random, np.zeros(_HIDDEN), np.zeros((_HIDDEN, 4)), np.zeros(4))
        self._weights = [value.astype(np.float32) for value in shapes]
        self._means = [np.zeros_like(value) for value in self._weights]
        self._squares = [np.zeros_like(value) for value in self._weights]
        self._steps = 0

    def predict(self, votes_T4F: Floats, around_TG: Floats) -> Floats:
        """Log-probabilities [T, 4]; `learn` goes on from here."""
        weights_F, into_DH, bias_H, out_H4, bias_4 = self._weights
        self._input_TD = np.concatenate([votes_T4F.reshape(len(votes_T4F), -1), around_TG], axis=1)
        self._hidden_TH = np.maximum(self._input_TD @ into_DH + bias_H, 0)
        logits_T4 = votes_T4F @ weights_F + self._hidden_TH @ out_H4 + bias_4
        logits_T4 -= logits_T4.max(axis=1, keepdims=True)
        self._log_p_T4 = logits_T4 - np.log(np.exp(logits_T4).sum(axis=1, keepdims=True))
        return self._log_p_T4

    def learn(self, votes_T4F: Floats, codes_T: NDArray[np.uint8], rate: float) -> None:
        """One step from the positions just predicted, towards the bases that came."""
        wrong_T4 = np.exp(self._log_p_T4) - np.eye(5, 4, dtype=np.float32)[codes_T]
        wrong_T4 *= (codes_T < 4)[:, None] / np.float32(len(codes_T))
        back_TH = (wrong_T4 @ self._weights[3].T) * (self._hidden_TH > 0)
        gradients = (
            np.einsum("tb,tbf->f", wrong_T4, votes_T4F),
            self._input_TD.T @ back_TH,
            back_TH.sum(axis=0),
            self._hidden_TH.T @ wrong_T4,
            wrong_T4.sum(axis=0),
        )
        self._steps += 1
        rate *= (1 - 0.995**self._steps) ** 0.5 / (1 - 0.9**self._steps)
        for value, mean, square, gradient in zip(self._weights, self._means, self._squares, gradients, strict=True):
            mean += 0.1 * (gradient - mean)
            square += 0.005 * (gradient * gradient - square)
            value -= rate * mean / (np.sqrt(square) + 1e-6)
