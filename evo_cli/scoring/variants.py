"""Alleles to rows: windows from the data room, log-likelihoods from the model room, deltas of both strands here."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from data.reference import Reference
from data.sequence import reverse_complement
from data.variants import VariantStatus, VariantWindow, WindowRule, variant_window
from data.vcf import Allele

if TYPE_CHECKING:
    from sh2.model import StripedHyena2
    from sh2.reading.branches import Branch, BranchScore

_WINDOWS = 64  # that are held and scored together: enough to fill batches
# alleles of shared windows that are: the more, the fewer bases each of them reads, so that calls are large
_ALLELES, _MOST_ALLELES, _READ = 2048, 8192, 1 << 22
# neighbours within so many bases continue one state; what they read anew for it must be little beside what follows.
# In windows of 8,192 all changes of 15 bases fill a call, and their reference is read once for all of them
_SPACING = 15

COLUMNS = (
    "chrom", "pos", "id", "ref", "alt", "status", "delta", "delta_fwd", "delta_rev", "ref_ll", "alt_ll",
    "window_start", "window_length", "offset", "delta_mean",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantOptions:
    """How alleles are scored.

    suffix: bases whose likelihood is compared after an allele, or after the first in which haplotypes differ if that is
    later; None compares all that follows in the window. reuse:
    read what haplotypes share once; without, each is read whole.
    """

    rule: WindowRule = field(default_factory=WindowRule)
    both_strands: bool = True
    suffix: int | None = None
    reuse: bool = True
    max_tokens: int = 65_536

    @property
    def block(self) -> int:
        """Alleles of shared windows that are scored together."""
        half = self.rule.length // 2
        read = half if self.suffix is None else min(self.suffix, half)
        return max(_ALLELES, min(_MOST_ALLELES, _READ // max(1, read)))


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantScore:
    """One allele's scores: sums of log-likelihoods (natural logarithm) over the window; None where not scored."""

    allele: Allele
    status: VariantStatus
    window_start: int = 0
    window_length: int = 0
    offset: int = 0
    strands: "tuple[BranchScore, ...]" = ()  # forward, and reverse if it was scored

    @property
    def delta(self) -> float | None:
        """alt minus ref, the mean of the strands; negative means that the model finds the alternative less likely."""
        return self._mean(lambda score: score.delta)

    @property
    def delta_mean(self) -> float | None:
        """The same of log-likelihoods a base."""
        return self._mean(
            lambda score: score.branch / max(1, score.num_branch) - score.reference / max(1, score.num_reference)
        )

    def row(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`; NA where there is no number."""
        allele = self.allele
        each = [*(score.delta for score in self.strands), None, None][:2]
        likelihoods = self._mean(lambda score: score.reference), self._mean(lambda score: score.branch)
        place = (self.window_start, self.window_length, self.offset) if self.strands else (None, None, None)
        return (
            *(allele.chrom, str(allele.pos), allele.id, allele.ref, allele.alt, str(self.status)),
            *(_cell(value) for value in (self.delta, *each, *likelihoods)),
            *("NA" if value is None else str(value) for value in place),
            "NA" if self.delta_mean is None else f"{self.delta_mean:.4e}",
        )

    def _mean(self, number: "Callable[[BranchScore], float]") -> float | None:
        return sum(map(number, self.strands)) / len(self.strands) if self.strands else None


def _cell(value: float | None) -> str:
    return "NA" if value is None else f"{value:.6f}"


Block = list[tuple[Allele, VariantWindow]]


def blocks(alleles: Iterable[Allele], reference: Reference, options: VariantOptions) -> Iterator[Block]:
    """Alleles with their windows, some at a time."""
    block: Block = []
    windows: dict[tuple[str, int], bytes] = {}
    for allele in alleles:
        window = variant_window(reference, allele, options.rule)
        place = allele.chrom, window.start
        if len(block) == options.block or (len(windows) == _WINDOWS and place not in windows):
            yield block
            block, windows = [], {}
        if window.status is VariantStatus.OK and windows.setdefault(place, window.ref) == window.ref:
            window = replace(window, ref=windows[place])  # one in memory for all that share it
        block.append((allele, window))
    if block:
        yield block


def score_block(
    options: VariantOptions, model: "StripedHyena2", block: Block, progress: Callable[[int], None]
) -> list[VariantScore]:
    """Score alleles whose windows are there."""
    from sh2.reading.branches import Family, score_families

    # alternatives of one reference are a family; one that is listed twice is scored once
    families: dict[bytes, dict[tuple[bytes, int, int], Branch]] = {}
    places = []
    for allele, window in block:
        branches = _branches(allele, window, options) if window.status is VariantStatus.OK else []
        keys = []
        for reference, branch in branches:
            key = branch.ids.tobytes(), branch.start, branch.end
            families.setdefault(reference, {})[key] = branch
            keys.append((reference, key))
        places.append(keys)
    scores = score_families(
        model,
        [
            Family(reference=np.frombuffer(reference, dtype=np.uint8), branches=list(branches.values()))
            for reference, branches in families.items()
        ],
        reuse=options.reuse,
        spacing=_SPACING if options.suffix is None else max(1, min(_SPACING, options.suffix // 4)),
        max_tokens=options.max_tokens,
        progress=progress,
    )
    found = {
        (reference, key): score
        for (reference, branches), of_family in zip(families.items(), scores, strict=True)
        for key, score in zip(branches, of_family, strict=True)
    }
    return [
        VariantScore(
            allele=allele,
            status=window.status,
            window_start=window.start,
            window_length=len(window.ref),
            offset=window.offset,
            strands=tuple(found[key] for key in keys),
        )
        for (allele, window), keys in zip(block, places, strict=True)
    ]


def _branches(allele: Allele, window: VariantWindow, options: VariantOptions) -> "list[tuple[bytes, Branch]]":
    """The reference haplotype and how the alternative leaves it, of each strand."""
    behind = len(window.ref) - window.offset - len(allele.ref)
    strands = [(window.ref, window.alt, window.offset)]
    if options.both_strands:
        strands.append((reverse_complement(window.ref), reverse_complement(window.alt), behind))
    longest = max(len(allele.ref), len(allele.alt))
    return [(ref, _branch(ref, alt, before, longest, options.suffix)) for ref, alt, before in strands]


def _branch(ref: bytes, alt: bytes, before: int, longest: int, suffix: int | None) -> "Branch":
    """Cut what both begin with off.

    Args:
        before: bases before the allele; haplotypes that differ earlier begin at different bases of the contig.
        longest: bases of the allele, in the haplotype in which it is longer.
    """
    from sh2.reading.branches import Branch

    shorter = min(len(ref), len(alt))
    r, a = (np.frombuffer(text, dtype=np.uint8) for text in (ref, alt))
    differ = r[:shorter] != a[:shorter]
    start = int(differ.argmax()) if differ.any() else shorter
    last = None
    if suffix is not None and start >= before:
        # of an allele within a repeat, haplotypes differ only where that ends
        last = max(before + longest, start + 1) + suffix
    return Branch(start=start, ids=a[start:last], end=len(r[:last]))
