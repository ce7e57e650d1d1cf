"""The two haplotypes of a variant: a window of the reference and the same window with the alternative in it.

Knows which alleles can be scored and says of the others why not; knows nothing of models. Sequences are those of the
forward strand; the other strand is the reverse complement of both.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from data.errors import DataError
from data.reference import Reference
from data.vcf import Allele

_BASES = re.compile("[ACGTacgt]+", re.ASCII)


class VariantStatus(StrEnum):
    """Whether an allele can be scored, or why not: the first reason that holds, tested in this order."""

    MISSING_CONTIG = "missing_contig"
    OUT_OF_RANGE = "out_of_range"
    NO_ALT = "no_alt"
    STAR = "star"
    SYMBOLIC = "symbolic"
    BREAKEND = "breakend"
    REF_MISMATCH = "ref_mismatch"
    NON_ACGT = "non_ACGT"
    REF_EQ_ALT = "ref_eq_alt"
    EXCEEDS_WINDOW = "exceeds_window"
    """REF or ALT is longer than the window: scored, it would be something else."""
    OK = "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantWindow:
    """Haplotypes of an allele; when `status` is not ok they are empty and the numbers 0.

    ref, alt: upper-case bases, equally long. start: first base of `ref` on the contig (0-based). offset, alt_offset:
    index of the variant in `ref` and in `alt`; what lies before is the same in both. They differ only at the right end
    of a contig (see `variant_window`).
    """

    status: VariantStatus
    ref: bytes = b""
    alt: bytes = b""
    start: int = 0
    offset: int = 0
    alt_offset: int = 0


def variant_window(reference: Reference, allele: Allele, window: int = 8192) -> VariantWindow:
    """Windows of `window` bp around an allele, or the reason why it cannot be scored.

    The variant lies at index window // 2, as in the BRCA1 analysis of the Evo 2 paper. At the ends of a contig the
    window is shifted, never padded; a contig that is shorter than the window is taken whole.

    Both haplotypes begin at the same base and are equally long: after an insertion the right edge of the alternative
    takes in fewer bases of the reference, after a deletion more, and where none are left at the right end of the contig
    the windows shift to the left (of a contig shorter than the window, both are as long as the shorter haplotype).
    Where fewer bases than the length changes by follow on the contig, an allele would be cut off: then its haplotype
    begins that much further right (only then alt_offset is not offset). An allele is cut only when the other haplotype
    of the whole contig is shorter than it.

    Raises DataError when the window is not at least 1 bp.
    """
    if window < 1:
        raise DataError(f"the window of a variant must be at least 1 bp, got {window}")
    contig = reference.resolve(allele.chrom)
    status = _status(reference, contig, allele)
    if contig is None or status is not VariantStatus.OK:
        return VariantWindow(status=status)
    at, length = allele.pos - 1, reference.contigs[contig]
    grown = len(allele.alt) - len(allele.ref)
    size = min(window, length, length + grown)
    longest = max(len(allele.ref), len(allele.alt))
    if longest > window:
        return VariantWindow(status=VariantStatus.EXCEEDS_WINDOW)
    wanted = max(at - window // 2, at + longest - size)
    start = max(0, min(wanted, length - size, length + grown - size))
    offset = at - start
    ref_cut, alt_cut = (min(offset, max(0, offset + len(text) - size)) for text in (allele.ref, allele.alt))
    bases = reference.fetch(contig, start, min(length, start + size + max(ref_cut, -grown, 0))).upper()
    changed = bases[:offset] + allele.alt.upper().encode() + bases[offset + len(allele.ref) :]
    return VariantWindow(
        status=VariantStatus.OK,
        ref=bases[ref_cut : ref_cut + size],
        alt=changed[alt_cut : alt_cut + size],
        start=start + ref_cut,
        offset=offset - ref_cut,
        alt_offset=offset - alt_cut,
    )


def _status(reference: Reference, contig: str | None, allele: Allele) -> VariantStatus:
    if contig is None:
        return VariantStatus.MISSING_CONTIG
    start, end = allele.pos - 1, allele.pos - 1 + len(allele.ref)
    if start < 0 or end > reference.contigs[contig]:
        return VariantStatus.OUT_OF_RANGE
    unusual = _kind(allele.alt)
    if unusual is not None:
        return unusual
    if reference.fetch(contig, start, end).upper() != allele.ref.upper().encode():
        return VariantStatus.REF_MISMATCH
    if not (_BASES.fullmatch(allele.ref) and _BASES.fullmatch(allele.alt)):
        return VariantStatus.NON_ACGT
    if allele.ref.upper() == allele.alt.upper():
        return VariantStatus.REF_EQ_ALT
    return VariantStatus.OK


def _kind(alt: str) -> VariantStatus | None:
    """What an alternative that is no sequence of letters is; None for letters."""
    if alt == ".":
        return VariantStatus.NO_ALT
    if alt in ("*", "<*>"):
        return VariantStatus.STAR
    if alt.startswith("<"):
        return VariantStatus.SYMBOLIC
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return VariantStatus.BREAKEND
    return None
