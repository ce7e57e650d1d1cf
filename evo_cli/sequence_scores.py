"""Records to rows: sequences from the data room, log-likelihoods from the model room."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.pieces import Record
from data.sequence import to_upper_dna

if TYPE_CHECKING:
    from sh2.model import StripedHyena2
    from sh2.scoring import Score

COLUMNS = ("record", "length", "log_likelihood", "mean_log_likelihood", "bits_per_base")
BASE_COLUMNS = ("record", "position", "base", "log_prob")
# bases of records that are held and scored together
_BLOCK_BASES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordScore:
    """One record's score; None for an empty record."""

    record: Record
    text: bytes  # as it was scored
    score: "Score | None"

    def row(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`; NA where there is no number."""
        score = self.score
        if score is None or not score.num_scored:
            return (self.record.name, str(len(self.text)), "NA", "NA", "NA")
        numbers = (score.log_likelihood, score.mean_log_likelihood, score.bits_per_base)
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
    max_tokens: int = 65_536


def score_records(
    model: "StripedHyena2", records: Iterable[Record], options: SequenceOptions, progress: Callable[[int], None]
) -> Iterator[RecordScore]:
    """Score records in their order, one result each; `progress` is called with the bases run, again and again."""
    for block in _blocks(records):
        texts = [record.sequence if options.keep_case else to_upper_dna(record.sequence) for record in block]
        scores = _scores(model, texts, options, progress)
        for record, text, score in zip(block, texts, scores, strict=True):
            yield RecordScore(record=record, text=text, score=score)


def _scores(
    model: "StripedHyena2", texts: list[bytes], options: SequenceOptions, progress: Callable[[int], None]
) -> "list[Score | None]":
    """The score of every text, None for an empty one; those longer than the context in sliding windows."""
    from sh2.perplexity import score_sliding
    from sh2.scoring import score

    longest = options.context or max(map(len, texts), default=0)
    whole = [place for place, text in enumerate(texts) if 0 < len(text) <= longest]
    scores: list[Score | None] = [None] * len(texts)
    found = score(
        model,
        [texts[place] for place in whole],
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


def _blocks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records, enough at a time to fill batches, few enough to hold."""
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        size += len(record.sequence)
        if size >= _BLOCK_BASES:
            yield block
            block, size = [], 0
    if block:
        yield block
