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


def score_records(
    model: "StripedHyena2",
    records: Iterable[Record],
    *,
    prepend_eod: bool,
    keep_case: bool,
    per_base: bool,
    max_tokens: int,
    progress: Callable[[int], None],
) -> Iterator[RecordScore]:
    """Score records in their order, one result each; `progress` is called with the bases run, again and again."""
    from sh2.scoring import score

    for block in _blocks(records):
        texts = [record.sequence if keep_case else to_upper_dna(record.sequence) for record in block]
        whole = [text for text in texts if text]
        scores = iter(
            score(
                model,
                whole,
                prepend_eod=prepend_eod,
                per_token=per_base,
                max_tokens=max_tokens,
                progress=progress,
            )
        )
        for record, text in zip(block, texts, strict=True):
            yield RecordScore(record=record, text=text, score=next(scores) if text else None)


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
