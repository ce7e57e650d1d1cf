"""Saturation: every single-base change of the regions of a reference, as alleles. Knows nothing of their scores."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from data.errors import DataError
from data.intervals import Interval
from data.reference import Reference
from data.vcf import Allele

_BASES = "ACGT"
_PIECE = 1 << 16


class Saturation(Iterator[Allele]):
    """The alleles of `saturate`, once, in order.

    intervals: the regions, merged and sorted as they are gone through. bases: their length together in bp; three
    alleles a base come at most. skipped: bases gone through so far that are no A, C, G or T and gave none.
    """

    def __init__(self, reference: Reference, intervals: Iterable[Interval]) -> None:
        self.intervals = _merged(reference, intervals)
        self.bases = sum(map(len, self.intervals))
        self.skipped = 0
        self._alleles = self._generate(reference)

    def __next__(self) -> Allele:
        return next(self._alleles)

    def _generate(self, reference: Reference) -> Iterator[Allele]:
        for interval in self.intervals:
            for start in range(interval.start, interval.end, _PIECE):
                bases = reference.fetch(interval.contig, start, min(start + _PIECE, interval.end)).upper().decode()
                for pos, ref in enumerate(bases, start + 1):
                    if ref not in _BASES:
                        self.skipped += 1
                        continue
                    for alt in _BASES:
                        if alt != ref:
                            yield Allele(chrom=interval.contig, pos=pos, id=".", ref=ref, alt=alt)


def saturate(reference: Reference, intervals: Iterable[Interval]) -> Saturation:
    """Every SNV of the regions, once: at each A, C, G or T the three other bases in the order of the alphabet.

    Contigs come in the order of the reference and positions in theirs, whatever the order of the regions; where
    regions overlap nothing comes twice. REF is upper-case, the id ".", the contig called as the reference calls it.
    Memory does not grow with the length of the regions. Raises DataError, before the first allele, for a contig that
    the reference does not have and for a region beyond its end.
    """
    return Saturation(reference, intervals)


def _merged(reference: Reference, intervals: Iterable[Interval]) -> list[Interval]:
    """Regions that overlap or touch as one, in the order of the reference."""
    spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for interval in intervals:
        contig = reference.resolve(interval.contig)
        if contig is None:
            raise DataError(
                f"region {interval}: {reference.path} has no contig {interval.contig!r} among its"
                f" {len(reference.contigs)}"
            ).hint(f"the first are {', '.join(list(reference.contigs)[:5])}")
        if interval.end > reference.contigs[contig]:
            raise DataError(
                f"region {interval} ends beyond contig {contig!r} of {reference.path}, which has"
                f" {reference.contigs[contig]} bp"
            )
        spans[contig].append((interval.start, interval.end))
    merged = []
    for contig in reference.contigs:
        first, last = -1, -1
        for start, end in sorted(spans.get(contig, [])):
            if start > last:
                if last > 0:
                    merged.append(Interval(contig, first, last))
                first = start
            last = max(last, end)
        if last > 0:
            merged.append(Interval(contig, first, last))
    return merged
