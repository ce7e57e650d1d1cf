"""Alleles to jobs and back: which of them are scored together, and what each is compared with.

Where blocks end follows from the alleles alone, so that a run that goes on, or a part of a whole, scores the same ones
together and rounds alike.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from data.background import background
from data.reference import Reference
from data.variants import variant_window
from data.vcf import Allele
from evo_cli.scoring.variants import Block, VariantOptions, VariantScore, blocks, score_block

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas

BACKGROUND_COLUMNS = ("background", "percentile", "z")


@dataclass(frozen=True, slots=True)
class Compared:
    """An allele's score, and the deltas of the random variants it is compared with."""

    score: VariantScore
    background: Sequence[float] = ()

    def row(self) -> tuple[str, ...]:
        """The cells of `BACKGROUND_COLUMNS`: how many there are, how many percent of them lie below the allele's delta
        (equal ones count half), and the delta's distance from their mean in their standard deviations."""
        delta, count = self.score.delta, len(self.background)
        if delta is None:
            return ("NA",) * len(BACKGROUND_COLUMNS)
        if not count:
            return ("0", "NA", "NA")
        below = sum((other < delta) + 0.5 * (other == delta) for other in self.background)
        mean = math.fsum(self.background) / count
        spread = math.sqrt(math.fsum((other - mean) ** 2 for other in self.background) / max(1, count - 1))
        return (str(count), f"{100 * below / count:.2f}", f"{(delta - mean) / spread:.4f}" if spread else "NA")


def score_groups(
    replicas: "Replicas",
    alleles: Iterator[Allele],
    reference: Reference,
    scoring: VariantOptions,
    *,
    unit: int,
    done: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[list[Compared]]:
    """Score alleles in their order, in the blocks that were scored together.

    Args:
        unit: no block goes beyond a multiple of so many alleles.
        done: alleles that come before these.
        progress: called with the bases that are read, of references and alternatives.
    """
    sizes = chain([unit - done % unit], iter(lambda: unit, None))
    groups = iter(lambda: list(islice(alleles, next(sizes))), [])
    jobs = (block for group in groups for block in blocks(group, reference, scoring))
    for scores in replicas.map(partial(score_block, scoring), jobs, progress):
        yield [Compared(score) for score in scores]


def score_compared(
    replicas: "Replicas",
    alleles: Iterable[Allele],
    reference: Reference,
    scoring: VariantOptions,
    *,
    count: int,
    progress: Callable[[int], None],
) -> Iterator[list[Compared]]:
    """Score each allele together with at most `count` matched random variants of its window (see data.background)."""
    held: deque[int] = deque()

    def jobs() -> Iterator[Block]:
        for allele in alleles:
            drawn = background(reference, allele, variant_window(reference, allele, scoring.rule), count)
            held.append(1 + len(drawn))
            yield from blocks([allele, *drawn], reference, scoring)

    found: list[VariantScore] = []
    for scores in replicas.map(partial(score_block, scoring), jobs(), progress):
        found += scores
        if len(found) == held[0]:
            own, *others = found
            yield [Compared(own, [one.delta for one in others if one.delta is not None])]
            held.popleft()
            found = []
