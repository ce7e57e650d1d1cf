"""Records to rows: sequences from the data room, log-likelihoods from the model room."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from data.pieces import Record
from data.sequence import to_upper_dna

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas
    from sh2.model import StripedHyena2
    from sh2.reading.scoring import Score

COLUMNS = ("record", "length", "log_likelihood", "mean_log_likelihood", "bits_per_base", "perplexity")
BASE_COLUMNS = ("record", "position", "base", "log_prob")
# batches' worth of bases that are held and scored together: what a block reads anew, a condition, is little beside it
_BLOCK_BATCHES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordScore:
    """One record's score; None for an empty record."""

    record: Record
    text: bytes  # as it was scored
    score: "Score | None"

    @property
    def scored(self) -> bool:
        """Whether there is a number: not of an empty record, nor of a single base without anything before it."""
        return self.score is not None and self.score.num_scored > 0

    def row(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`; NA where there is no number."""
        score = self.score
        if score is None or not self.scored:
            return (self.record.name, str(len(self.text)), *["NA"] * (len(COLUMNS) - 2))
        mean = score.mean_log_likelihood
        numbers = (score.log_likelihood, mean, score.bits_per_base, math.exp(-mean))
        return (self.record.name, str(score.length), *(f"{number:.6f}" for number in numbers))

    def base_rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of `BASE_COLUMNS`, one row a scored base; positions count from 1."""
        if self.score is None or self.score.log_probs is None:
            return
        first = self.score.length - self.score.num_scored
        for place, log_prob in enumerate(self.score.log_probs, start=first):
            yield (self.record.name, str(place + 1), chr(self.text[place]), f"{log_prob:.6f}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceOptions:
    """How records are scored."""

    prepend_eod: bool = False
    keep_case: bool = False
    per_base: bool = False
    context: int | None = None  # bases that a base may look back on; None is all of the record
    condition: bytes = b""  # what stands before every record
    max_tokens: int = 65_536

    @property
    def first_position(self) -> int:
        """The first base of a record that has a prediction, counted from 1."""
        return 1 if self.prepend_eod or self.condition else 2

    def text(self, sequence: bytes) -> bytes:
        """A sequence as the model reads it."""
        return sequence if self.keep_case else to_upper_dna(sequence)


def score_records(
    replicas: "Replicas", records: Iterable[Record], options: SequenceOptions, progress: Callable[[int], None]
) -> Iterator[list[RecordScore]]:
    """Score records in their order, one result each, in the blocks that were scored together.

    Where blocks end follows from the records after the end of the last one alone. `progress` is called with the bases
    that were run, again and again.
    """
    held: deque[tuple[list[Record], list[bytes]]] = deque()

    def jobs() -> Iterator[list[bytes]]:
        for block in _blocks(records, _BLOCK_BATCHES * max(options.max_tokens, len(options.condition))):
            texts = [options.text(record.sequence) for record in block]
            held.append((block, texts))
            yield texts

    for scores in replicas.map(partial(score_texts, options), jobs(), progress):
        block, texts = held.popleft()
        yield [
            RecordScore(record=record, text=text, score=score)
            for record, text, score in zip(block, texts, scores, strict=True)
        ]


def score_texts(
    options: SequenceOptions, model: "StripedHyena2", texts: list[bytes], progress: Callable[[int], None]
) -> "list[Score | None]":
    """The score of every text, None for an empty one; those longer than the context in sliding windows."""
    from sh2.reading.perplexity import score_sliding
    from sh2.reading.scoring import score

    longest = options.context or max(map(len, texts), default=0)
    whole = [place for place, text in enumerate(texts) if 0 < len(text) <= longest]
    scores: list[Score | None] = [None] * len(texts)
    found = score(
        model,
        [texts[place] for place in whole],
        condition=options.condition,
        prepend_eod=options.prepend_eod,
        per_token=options.per_base,
        max_tokens=options.max_tokens,
        progress=progress,
    )
    for place, one in zip(whole, found, strict=True):
        scores[place] = one
    for place, text in enumerate(texts):
        if len(text) > longest:
            scores[place] = score_sliding(
                model,
                text,
                context=longest,
                prepend_eod=options.prepend_eod,
                per_token=options.per_base,
                max_tokens=options.max_tokens,
                progress=progress,
            )
    return scores


def _blocks(records: Iterable[Record], bases: int) -> Iterator[list[Record]]:
    """Records, enough at a time to fill batches, few enough to hold."""
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        # an empty record counts too: a file of nothing else must not be held whole
        size += len(record.sequence) + 1
        if size >= bases:
            yield block
            block, size = [], 0
    if block:
        yield block
