"""The normal form of alleles against every other way of writing the same change."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.alignment import is_normalised, left_aligned
from data.errors import DataError
from data.reference import Reference
from data.vcf import Allele
from tests.data.haplotypes import haplotypes


def reference(folder: Path, **contigs: str) -> Reference:
    path = folder / "reference.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return Reference(path)


def allele(pos: int, ref: str, alt: str, chrom: str = "a") -> Allele:
    return Allele(chrom=chrom, pos=pos, id="x", ref=ref, alt=alt)


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference(
        tmp_path_factory.mktemp("genome"), a="GGGCACACACAGGG", soft="tttacgCgcgtaa", start="CACACAT", n="ANNNNA",
        long="G" + "A" * 1000 + "T",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("chrom", "pos", "ref", "alt", "normal"),
    [
        # the worked example of Tan et al. 2015: one deletion of CA in GGGCACACACAGGG
        ("a", 3, "GCA", "G", (3, "GCA", "G")),
        ("a", 8, "CA", ".", (8, "CA", ".")),
        ("a", 2, "GGCA", "GG", (3, "GCA", "G")),
        ("a", 3, "GCACA", "GCA", (3, "GCA", "G")),
        ("a", 5, "ACA", "A", (3, "GCA", "G")),
        ("a", 10, "CAG", "G", (3, "GCA", "G")),
        ("a", 11, "A", "ACA", (3, "G", "GCA")),
        # nothing moves, something is cut
        ("a", 4, "C", "T", (4, "C", "T")),
        ("a", 3, "GC", "GT", (4, "C", "T")),
        ("a", 4, "CA", "TA", (4, "C", "T")),
        ("a", 4, "CAC", "TAT", (4, "CAC", "TAT")),
        ("a", 4, "CACA", "TGTCA", (4, "CA", "TGT")),
        # letters of either case are the same letters
        ("soft", 6, "gCg", "g", (4, "ACG", "A")),
        ("soft", 4, "acg", "ACGT", (6, "G", "GT")),
        ("soft", 1, "t", "C", (1, "t", "C")),
        # at the beginning of a contig the base after the change is shared
        ("start", 3, "CAC", "C", (1, "CAC", "C")),
        ("start", 1, "CAC", "C", (1, "CAC", "C")),
        ("start", 1, "C", "CAC", (1, "C", "CAC")),
        ("start", 6, "A", "ACA", (1, "C", "CAC")),
        ("start", 1, "C", "GC", (1, "C", "GC")),
        ("start", 1, "CACACAT", "T", (1, "CACACAT", "T")),
        # no sequence, or no change: as it is
        ("a", 4, "C", "<DEL>", (4, "C", "<DEL>")),
        ("a", 4, "C", "*", (4, "C", "*")),
        ("a", 4, "C", "C]a:9]", (4, "C", "C]a:9]")),
        ("a", 4, "CA", "CA]a:9]", (4, "CA", "CA]a:9]")),
        ("a", 4, "CA", "ca", (4, "CA", "ca")),
        # unknown bases are letters like others
        ("n", 3, "NN", "N", (1, "AN", "A")),
        # further than a piece that is fetched
        ("long", 1001, "A", "AA", (1, "G", "GA")),
        ("long", 998, "AAAA", "A", (1, "GAAA", "G")),
    ],
)
def test_normal_form(genome: Reference, chrom: str, pos: int, ref: str, alt: str, normal: tuple[int, str, str]) -> None:
    written = allele(pos, ref, alt, chrom)
    made = left_aligned(genome, chrom, written)
    assert (made.pos, made.ref, made.alt) == normal
    assert (made.chrom, made.id) == (chrom, "x")
    assert is_normalised(genome, chrom, written) == (normal == (pos, ref, alt))
    assert left_aligned(genome, chrom, made) is made


def written_ways(contig: str, changed: str) -> list[tuple[int, str, str]]:
    """Every allele with neither side empty that makes one text of the other, by trying all."""
    ways = []
    for start in range(len(contig)):
        for end in range(start + 1, len(contig) + 1):
            alt = changed[start : len(changed) - (len(contig) - end)]
            if alt and contig[:start] + alt + contig[end:] == changed:
                ways.append((start + 1, contig[start:end], alt))
    return ways


@settings(max_examples=400, deadline=None)
@given(
    contig=st.one_of(st.text("AC", min_size=1, max_size=14), st.text("ACGT", min_size=1, max_size=14)),
    choice=st.data(),
)
def test_the_normal_form_is_the_shortest_and_leftmost_of_all(
    contig: str, choice: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    at = choice.draw(st.integers(0, len(contig) - 1))
    ref = contig[at : at + choice.draw(st.integers(1, 6))]
    alt = choice.draw(st.one_of(st.text("AC", min_size=1, max_size=6), st.text("ACGT", min_size=1, max_size=6)))
    old, new = haplotypes(contig, at + 1, ref, alt)
    genome = reference(tmp_path_factory.getbasetemp(), a=contig)
    made = left_aligned(genome, "a", allele(at + 1, ref, alt))
    if old == new:
        assert made == allele(at + 1, ref, alt)
        return
    ways = written_ways(old, new)
    best = min(ways, key=lambda way: (len(way[1]) + len(way[2]), way[0]))
    assert (made.pos, made.ref, made.alt) == best
    for way in ways:
        assert left_aligned(genome, "a", allele(*way)) == made
        assert is_normalised(genome, "a", allele(*way)) == (way == best)


def test_a_position_outside_the_contig_is_refused(genome: Reference) -> None:
    with pytest.raises(DataError, match="are not within contig 'a' of 14 bp"):
        left_aligned(genome, "a", allele(99, "A", "AC"))
