"""Whether an allele is written in its normal form: parsimonious and left-aligned (Tan, Abecasis and Kang 2015).

One change of a sequence can be written as many alleles: in GCACACAT the deletion of one CA is GCA>G at 1, CAC>C at 2
or ACA>A at 3. The normal form is the shortest without an empty allele and, of the shortest, the one furthest left: what
`bcftools norm` makes of each allele. Databases are searched by it, so an allele in another form may be missed.
"""

from dataclasses import replace

from data.reference import Reference
from data.vcf import Allele

_LETTERS = frozenset("ACGTN")
_PIECE = 256


def left_aligned(reference: Reference, contig: str, allele: Allele) -> Allele:
    """The normal form of an allele, in upper case; the allele itself when it is written so, whatever its case.

    contig: the reference's name of the allele's contig; that of the allele stays. REF is taken to be what the reference
    has there (see data.variants for what does not fit). An ALT that is no sequence of A, C, G, T and N, and one that is
    REF, have no other form. At the beginning of a contig, where no base comes before, the base after the change is the
    one that both alleles share. Raises DataError for a position outside the contig.
    """
    ref, alt = allele.ref.upper(), allele.alt.upper()
    if ref == alt or not _LETTERS.issuperset(ref + alt):
        return allele
    same_end = _shared(ref[::-1], alt[::-1])
    ref, alt = ref[: len(ref) - same_end], alt[: len(alt) - same_end]
    same_start = _shared(ref, alt)
    at, ref, alt = allele.pos - 1 + same_start, ref[same_start:], alt[same_start:]
    if not (ref and alt):
        changed = ref or alt
        steps = _steps_left(reference, contig, at, changed)
        at, turn = at - steps, steps % len(changed)
        changed = changed[len(changed) - turn :] + changed[: len(changed) - turn]
        anchor_at = at - 1 if at else len(ref)
        anchor = reference.fetch(contig, anchor_at, anchor_at + 1).decode().upper()
        both = anchor + changed if at else changed + anchor
        ref, alt, at = both if ref else anchor, both if alt else anchor, max(at - 1, 0)
    if (at, ref, alt) == (allele.pos - 1, allele.ref.upper(), allele.alt.upper()):
        return allele
    return replace(allele, pos=at + 1, ref=ref, alt=alt)


def is_normalised(reference: Reference, contig: str, allele: Allele) -> bool:
    """Whether an allele is its own normal form, upper and lower case being one. Raises as `left_aligned`."""
    return left_aligned(reference, contig, allele) is allele


def _shared(one: str, other: str) -> int:
    """How many letters two texts begin with together."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def _steps_left(reference: Reference, contig: str, at: int, changed: str) -> int:
    """How far bases that are inserted or deleted before base `at` can move left, the outcome being the same.

    A step left is possible when the base before them is their last; it then becomes their first.
    """
    steps, size = 0, len(changed)
    while at > steps:
        end = at - steps
        before = reference.fetch(contig, max(0, end - _PIECE), end).decode().upper()
        for base in reversed(before):
            if base != changed[-1 - steps % size]:
                return steps
            steps += 1
    return steps
