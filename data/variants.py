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


class IndelMode(StrEnum):
    """What becomes of a window when an alternative is longer or shorter than the reference."""

    FIXED_LENGTH = "fixed-length"
    """Both haplotypes are equally long: after a deletion the alternative takes in more of the contig."""
    APPEND = "append"
    """Both end at the same base of the contig: the alternative is as much longer or shorter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowRule:
    """How windows are laid around alleles.

    length: bp. indels: see `IndelMode`. max_indel: by how many bp an allele may change the length; None is any. share:
    alleles in the same stretch of so many bp (stretches begin at multiples of it) get the same window, around the
    middle of the stretch; 1 gives every position its own. ignore_ref: take an allele whose REF is not what the contig
    has, as if it were.

    Raises DataError when length or share is not at least 1, share more than half the length, or max_indel negative.
    """

    length: int = 8192
    indels: IndelMode = IndelMode.FIXED_LENGTH
    max_indel: int | None = None
    share: int = 1
    ignore_ref: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError(f"the window of a variant must be at least 1 bp, got {self.length}")
        if not 1 <= self.share <= max(1, self.length // 2):
            raise DataError(
                f"alleles within 1 to {max(1, self.length // 2)} bp, half the window, can share one, not {self.share}"
            )
        if self.max_indel is not None and self.max_indel < 0:
            raise DataError(f"the largest indel must be 0 bp or more, got {self.max_indel}")


_RULE = WindowRule()


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
    INDEL_TOO_LONG = "indel_too_long"
    """The length changes by more than is allowed."""
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


def variant_window(reference: Reference, allele: Allele, rule: WindowRule = _RULE) -> VariantWindow:
    """The windows around an allele, or the reason why it cannot be scored.

    The variant lies at index length // 2, as in the BRCA1 analysis of the Evo 2 paper; where a window is shared, up to
    half a stretch beside it. At the ends of a contig the window is shifted, never padded; a contig that is shorter than
    the window is taken whole.

    Both haplotypes begin at the same base and, with fixed length, are equally long: after an insertion the right edge
    of the alternative takes in fewer bases of the reference, after a deletion more, and where none are left at the
    right end of the contig the windows shift to the left (of a contig shorter than the window, both are as long as the
    shorter haplotype). Where fewer bases than the length changes by follow on the contig, an allele would be cut off:
    then its haplotype begins that much further right (only then alt_offset is not offset). An allele is cut only when
    the other haplotype of the whole contig is shorter than it.
    """
    contig = reference.resolve(allele.chrom)
    status = _status(reference, contig, allele, rule)
    if contig is None or status is not VariantStatus.OK:
        return VariantWindow(status=status)
    at, length = allele.pos - 1, reference.contigs[contig]
    grown = len(allele.alt) - len(allele.ref)
    if rule.indels is IndelMode.APPEND:
        return _appended(reference, contig, allele, rule)
    size = min(rule.length, length, length + grown)
    start = _start(at, max(len(allele.ref), len(allele.alt)), size, min(length, length + grown), rule)
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


def _start(at: int, longest: int, size: int, length: int, rule: WindowRule) -> int:
    """Where a window of `size` bp begins that holds an allele of `longest` bp, on a contig of `length` bp."""
    middle = at - at % rule.share + rule.share // 2
    wanted = max(middle - rule.length // 2, at + longest - size)
    return max(0, min(wanted, length - size))


def _appended(reference: Reference, contig: str, allele: Allele, rule: WindowRule) -> VariantWindow:
    """The window of the reference, and the same with the allele in it, longer or shorter."""
    at, length = allele.pos - 1, reference.contigs[contig]
    size = min(rule.length, length)
    start = _start(at, len(allele.ref), size, length, rule)
    offset = at - start
    bases = reference.fetch(contig, start, start + size).upper()
    changed = bases[:offset] + allele.alt.upper().encode() + bases[offset + len(allele.ref) :]
    return VariantWindow(status=VariantStatus.OK, ref=bases, alt=changed, start=start, offset=offset, alt_offset=offset)


def _status(reference: Reference, contig: str | None, allele: Allele, rule: WindowRule) -> VariantStatus:
    if contig is None:
        return VariantStatus.MISSING_CONTIG
    start, end = allele.pos - 1, allele.pos - 1 + len(allele.ref)
    if start < 0 or end > reference.contigs[contig]:
        return VariantStatus.OUT_OF_RANGE
    unusual = _kind(allele.alt)
    if unusual is not None:
        return unusual
    if not rule.ignore_ref and reference.fetch(contig, start, end).upper() != allele.ref.upper().encode():
        return VariantStatus.REF_MISMATCH
    if not (_BASES.fullmatch(allele.ref) and _BASES.fullmatch(allele.alt)):
        return VariantStatus.NON_ACGT
    if allele.ref.upper() == allele.alt.upper():
        return VariantStatus.REF_EQ_ALT
    if rule.max_indel is not None and abs(len(allele.alt) - len(allele.ref)) > rule.max_indel:
        return VariantStatus.INDEL_TOO_LONG
    if max(len(allele.ref), len(allele.alt)) > rule.length:
        return VariantStatus.EXCEEDS_WINDOW
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
