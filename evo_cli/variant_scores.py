"""Alleles to rows: windows from the data room, log-likelihoods from the model room, deltas here."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from data.reference import Reference
from data.sequence import reverse_complement
from data.variants import VariantWindow, variant_window
from data.vcf import Allele

if TYPE_CHECKING:
    from sh2.model import StripedHyena2

# alleles whose windows are held and scored together: enough to share reference windows and to fill batches
_BLOCK = 64

COLUMNS = (
    "chrom", "pos", "id", "ref", "alt", "status", "delta", "delta_fwd", "delta_rev", "ref_ll", "alt_ll",
    "window_start", "window_length", "offset",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantScore:
    """One allele's scores: sums of log-likelihoods (natural logarithm) over the window; None where not scored."""

    allele: Allele
    window: VariantWindow
    delta_fwd: float | None = None
    delta_rev: float | None = None
    ref_ll: float | None = None  # mean over the strands that were scored
    alt_ll: float | None = None

    @property
    def delta(self) -> float | None:
        """alt minus ref; negative means that the model finds the alternative less likely."""
        return None if self.ref_ll is None or self.alt_ll is None else self.alt_ll - self.ref_ll

    def row(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`; NA where there is no number."""
        allele, window = self.allele, self.window
        scores = (self.delta, self.delta_fwd, self.delta_rev, self.ref_ll, self.alt_ll)
        scored = window.status == "ok"
        place = (window.start, len(window.ref), window.offset) if scored else (None, None, None)
        return (
            *(allele.chrom, str(allele.pos), allele.id, allele.ref, allele.alt, str(window.status)),
            *("NA" if value is None else f"{value:.6f}" for value in scores),
            *("NA" if value is None else str(value) for value in place),
        )


def score_alleles(
    model: "StripedHyena2",
    alleles: Iterable[Allele],
    reference: Reference,
    *,
    window: int,
    both_strands: bool,
    max_tokens: int,
) -> Iterator[VariantScore]:
    """Score alleles in their order, one result each, whatever their status."""
    stream = iter(alleles)
    while block := list(islice(stream, _BLOCK)):
        windows = [variant_window(reference, allele, window) for allele in block]
        likelihoods = _log_likelihoods(model, windows, both_strands=both_strands, max_tokens=max_tokens)
        for allele, place in zip(block, windows, strict=True):
            if place.status != "ok":
                yield VariantScore(allele=allele, window=place)
                continue
            pairs = [
                (likelihoods[strand(place.ref)], likelihoods[strand(place.alt)])
                for strand in _strands(both_strands=both_strands)
            ]
            deltas = [alt - ref for ref, alt in pairs]
            yield VariantScore(
                allele=allele,
                window=place,
                delta_fwd=deltas[0],
                delta_rev=deltas[1] if both_strands else None,
                ref_ll=sum(ref for ref, _ in pairs) / len(pairs),
                alt_ll=sum(alt for _, alt in pairs) / len(pairs),
            )


def _log_likelihoods(
    model: "StripedHyena2", windows: list[VariantWindow], *, both_strands: bool, max_tokens: int
) -> dict[bytes, float]:
    """Score every distinct haplotype once, on each strand: alternatives of one site share their reference."""
    from sh2.scoring import score

    haplotypes = dict.fromkeys(
        strand(haplotype)
        for place in windows
        if place.status == "ok"
        for haplotype in (place.ref, place.alt)
        for strand in _strands(both_strands=both_strands)
    )
    scores = score(model, list(haplotypes), max_tokens=max_tokens)
    return {haplotype: one.log_likelihood for haplotype, one in zip(haplotypes, scores, strict=True)}


def _strands(*, both_strands: bool) -> tuple[Callable[[bytes], bytes], ...]:
    return (bytes, reverse_complement) if both_strands else (bytes,)
