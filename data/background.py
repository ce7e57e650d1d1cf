"""Matched random variants: what a variant's score is to be compared with, drawn from the same window.

A drawn variant is of the same kind as its model, which is first cut to the bases that change:

- an SNV has the same REF and ALT base at another place; only when the window has no more places with that REF base
  come places with other bases, and there each of the three alternatives is equally likely;
- several changed bases of equal number (MNV) change as many at the same distances, into random others;
- an insertion puts the same bases in elsewhere; a deletion takes as many bases out elsewhere;
- what is both (delins) replaces as many bases elsewhere by the same new ones.

Places are drawn without repetition from the whole window, those apart that the model itself touches, those where the
reference is not A, C, G or T, and those where the outcome would be the model's own or that of a place drawn before (an
insertion into the same repeat).
The draw depends on the window and on the seed, the reference's name of the contig, the position, REF and ALT: it is the
same whatever is scored before or beside and on whichever machine, and more variants only continue fewer. Its random
bits are SHAKE-128 of these, which no version of a library changes.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from data.alignment import left_aligned
from data.reference import Reference
from data.variants import VariantStatus, VariantWindow
from data.vcf import Allele

_BASES = b"ACGT"
_CODES = np.full(256, 4, dtype=np.uint8)
_CODES[list(_BASES)] = range(4)


def background(
    reference: Reference, allele: Allele, window: VariantWindow, count: int, *, seed: int = 0
) -> list[Allele]:
    """At most `count` matched random variants of an allele: fewer when the window has no more places, none when the
    allele has no window.

    window: the allele's own, of the same reference. The variants are on the same contig under the same name, all within
    the window's stretch of the reference, distinct, in upper case and with the id "."; each is one that
    `data.variants.variant_window` gives a window to. Their order is random: the first ones are a sample as good as any.
    """
    contig = reference.resolve(allele.chrom)
    if window.status is not VariantStatus.OK or contig is None or count < 1:
        return []
    core = _Core(allele)
    bases = reference.fetch(
        contig, window.start, min(window.start + len(window.ref), reference.contigs[contig])
    ).upper()
    draw = f"{seed}\t{contig}\t{allele.pos}\t{allele.ref.upper()}\t{allele.alt.upper()}"
    outcomes = {_written(left_aligned(reference, contig, allele))}
    own = range(allele.pos - 1 - window.start, allele.pos - 1 - window.start + len(allele.ref))
    made: list[Allele] = []
    for at in map(int, core.places(bases, _shuffled(len(bases), draw))):
        if len(made) == count:
            break
        if at < own.stop and at + core.span > own.start:
            continue
        ref, alt = core.at(bases, at, f"{draw}\t{at}")
        one = Allele(chrom=allele.chrom, pos=window.start + at + 1, id=".", ref=ref, alt=alt)
        outcome = _written(left_aligned(reference, contig, one))
        if outcome not in outcomes:
            outcomes.add(outcome)
            made.append(one)
    return made


def _bits(text: str, count: int) -> npt.NDArray[np.uint64]:
    """Random numbers of 64 bits that depend on a text alone."""
    return np.frombuffer(hashlib.shake_128(text.encode()).digest(8 * count), dtype="<u8")


def _shuffled(size: int, draw: str) -> npt.NDArray[np.intp]:
    """Every index below `size`, in random order."""
    return np.argsort(_bits(draw, size), kind="stable")


class _Core:
    """What an allele changes. span: bases of the reference that a variant of the kind writes as REF."""

    def __init__(self, allele: Allele) -> None:
        ref, alt = allele.ref.upper(), allele.alt.upper()
        while ref and alt and ref[-1] == alt[-1]:
            ref, alt = ref[:-1], alt[:-1]
        while ref and alt and ref[0] == alt[0]:
            ref, alt = ref[1:], alt[1:]
        self.ref, self.alt = ref, alt
        self.span = len(ref) + (not (ref and alt))  # insertions and deletions are written with the base before

    def places(self, bases: bytes, order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Where in the window a variant of the kind can be, in the order of drawing, the best matches first."""
        codes = _CODES[np.frombuffer(bases, dtype=np.uint8)]
        unknown = np.concatenate([[0], np.cumsum(codes == 4)])
        fits = np.zeros(len(codes), dtype=np.bool_)
        last = len(codes) - self.span + 1
        fits[: max(0, last)] = unknown[self.span :] == unknown[: max(0, last)]
        places = order[fits[order]]
        if len(self.ref) == len(self.alt) == 1:
            same = codes[places] == _BASES.index(self.ref.encode())
            places = np.concatenate([places[same], places[~same]])
        return places

    def at(self, bases: bytes, at: int, draw: str) -> tuple[str, str]:
        """REF and ALT of the kind at a place. draw: what decides on what is left open."""
        ref = bases[at : at + self.span].decode()
        if not self.ref:
            return ref, ref + self.alt
        if not self.alt:
            return ref, ref[0]
        if len(self.ref) != len(self.alt):
            return ref, self.alt
        if ref == self.ref:
            return ref, self.alt
        changed = [
            found if old == new else _BASES.decode().replace(found, "")[bits % 3]
            for found, old, new, bits in zip(ref, self.ref, self.alt, _bits(draw, self.span).tolist(), strict=True)
        ]
        return ref, "".join(changed)


def _written(allele: Allele) -> tuple[int, str, str]:
    return allele.pos, allele.ref.upper(), allele.alt.upper()
