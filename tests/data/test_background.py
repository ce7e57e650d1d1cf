"""Matched random variants: of the same kind, in the same window, and the same however they are asked for."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.background import background
from data.reference import Reference
from data.variants import VariantStatus, VariantWindow, WindowRule, variant_window
from data.vcf import Allele
from tests.data.haplotypes import haplotypes

RULE = WindowRule(length=200)
CONTIG = "".join(random.Random(1).choices("ACGT", k=1000))


def reference(folder: Path, sequence: str, name: str = "chr1") -> Reference:
    path = folder / "reference.fa"
    path.write_text(f">{name}\n{sequence}\n")
    return Reference(path)


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference(tmp_path_factory.mktemp("genome"), CONTIG)


def allele(pos: int, ref: str, alt: str, chrom: str = "chr1") -> Allele:
    return Allele(chrom=chrom, pos=pos, id="rs1", ref=ref, alt=alt)


def draw(
    genome: Reference, one: Allele, count: int, seed: int = 0, rule: WindowRule = RULE
) -> tuple[VariantWindow, list[Allele]]:
    window = variant_window(genome, one, rule)
    return window, background(genome, one, window, count, seed=seed)


def other(base: str) -> str:
    return "ACGT"[("ACGT".index(base) + 1) % 4]


def lengths(one: Allele) -> tuple[int, int]:
    return len(one.ref), len(one.alt)


# the part of the contig around 500 that every case below begins with
REF = CONTIG[499:503]
PINNED = [513, 527, 450, 415, 546]


@pytest.mark.parametrize(
    ("ref", "alt"),
    [
        (REF[0], other(REF[0])),
        (REF[0], REF[0] + "ACG"),
        (REF[:4], REF[0]),
        (REF[:3], other(REF[0]) + REF[1] + other(REF[2])),
        (REF[:3], other(REF[0]) + "A" * 5 + other(REF[2])),
        (REF[:2], REF[0] + other(REF[1])),
    ],
)
def test_variants_of_the_same_kind_in_the_window(genome: Reference, ref: str, alt: str) -> None:
    one = allele(500, ref, alt)
    window, made = draw(genome, one, 30)
    assert window.status == "ok"
    assert len(made) == len({(item.pos, item.ref, item.alt) for item in made}) == 30
    for item in made:
        assert (item.chrom, item.id) == ("chr1", ".")
        assert variant_window(genome, item, RULE).status is VariantStatus.OK
        assert window.start < item.pos
        assert item.pos - 1 + len(item.ref) <= window.start + len(window.ref)
        assert item.pos + len(item.ref) <= 500 or item.pos >= 500 + len(ref), "the place of the model is left alone"
        assert haplotypes(CONTIG, item.pos, item.ref, item.alt)[1] != haplotypes(CONTIG, 500, ref, alt)[1]
        assert len(item.alt) - len(item.ref) == len(alt) - len(ref)


def test_an_snv_is_matched_base_for_base_as_long_as_there_are_places(genome: Reference) -> None:
    ref = CONTIG[499]
    one = allele(500, ref, other(ref))
    window, made = draw(genome, one, 1000)
    same = window.ref.count(ref.encode()) - 1
    assert 20 < same < 100
    assert {(item.ref, item.alt) for item in made[:same]} == {(ref, other(ref))}
    assert ref not in {item.ref for item in made[same:]}
    assert len({item.pos for item in made}) == len(made) == len(window.ref) - 1, "each other place once"
    assert all(item.alt != item.ref for item in made)


def test_insertions_put_in_the_same_bases_and_deletions_take_out_as_many(genome: Reference) -> None:
    _, made = draw(genome, allele(500, REF[0], REF[0] + "ACG"), 20)
    assert {item.alt.removeprefix(item.ref) for item in made} == {"ACG"}
    assert {lengths(item) for item in made} == {(1, 4)}
    _, made = draw(genome, allele(500, REF, REF[0]), 20)
    assert {lengths(item) for item in made} == {(4, 1)}
    assert all(item.alt == item.ref[0] for item in made)


def test_what_changes_nothing_around_it_is_cut_off_first(genome: Reference) -> None:
    """GT>GA is the SNV T>A."""
    _, made = draw(genome, allele(500, REF[:3], REF[:2] + other(REF[2])), 20)
    assert {(item.ref, item.alt) for item in made} == {(REF[2], other(REF[2]))}


def test_several_changed_bases_keep_their_distances(genome: Reference) -> None:
    _, made = draw(genome, allele(500, REF[:3], other(REF[0]) + REF[1] + other(REF[2])), 40)
    assert all([a == b for a, b in zip(item.ref, item.alt, strict=True)] == [False, True, False] for item in made)
    assert len({item.alt[0] for item in made}) == 4


def test_the_draw_depends_on_the_variant_and_the_seed_alone(genome: Reference, tmp_path: Path) -> None:
    ref = CONTIG[499]
    one = allele(500, ref, other(ref))
    _, made = draw(genome, one, 20)
    _, fewer = draw(genome, one, 7)
    assert fewer == made[:7], "fewer are the first of more"
    draw(genome, allele(700, CONTIG[699], other(CONTIG[699])), 5)
    assert draw(genome, one, 20)[1] == made
    assert draw(Reference(genome.path, read_whole=0), one, 20)[1] == made
    lower = reference(tmp_path, CONTIG.lower())
    assert draw(lower, allele(500, ref.lower(), other(ref).lower()), 20)[1] == made
    named = [(item.pos, item.ref, item.alt) for item in draw(genome, allele(500, ref, other(ref), "1"), 20)[1]]
    assert named == [(item.pos, item.ref, item.alt) for item in made]
    assert draw(genome, one, 20, seed=1)[1] != made
    assert draw(genome, allele(500, ref, other(other(ref))), 20)[1] != made


def test_a_draw_that_stays_what_it_is(genome: Reference) -> None:
    """Scores of another release must be comparable: these numbers may not change."""
    ref = CONTIG[499]
    assert [item.pos for item in draw(genome, allele(500, ref, other(ref)), 5)[1]] == PINNED


def test_every_place_is_as_likely(genome: Reference) -> None:
    ref = CONTIG[499]
    one = allele(500, ref, other(ref))
    counts: Counter[int] = Counter()
    for seed in range(600):
        counts.update(item.pos for item in draw(genome, one, 5, seed=seed)[1])
    places = variant_window(genome, one, RULE).ref.count(ref.encode()) - 1
    assert len(counts) == places
    expected = 3000 / places
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert abs(chi2 - (places - 1)) < 5 * (2 * (places - 1)) ** 0.5


@pytest.mark.parametrize(
    ("sequence", "one", "expected"),
    [
        # unknown bases give no variants
        ("NNNNANNNN", allele(5, "A", "C"), []),
        ("NNANANNNN", allele(5, "A", "C"), [(3, "A", "C")]),
        # in a homopolymer every insertion of its base is the same
        ("AAAAAAAA", allele(3, "A", "AA"), []),
        ("AAAAAAAA", allele(3, "AA", "A"), []),
        ("AAAAAACG", allele(3, "A", "AA"), [(7, "C", "CA"), (8, "G", "GA")]),
        # two of the places make of this delins the same insertion
        ("ACA", allele(2, "C", "ACA"), [(3, "A", "ACA")]),
        ("A", allele(1, "A", "C"), []),
        # no window, no variants
        ("AAAA", allele(2, "A", "<DEL>"), []),
        ("AAAA", allele(2, "C", "T"), []),
        ("AAAA", allele(2, "A", "C", "chr2"), []),
    ],
)
def test_few_or_no_places(tmp_path: Path, sequence: str, one: Allele, expected: list[tuple[int, str, str]]) -> None:
    made = draw(reference(tmp_path, sequence), one, 9)[1]
    assert sorted((item.pos, item.ref, item.alt) for item in made) == expected


def test_none_are_made_when_none_are_asked_for(genome: Reference) -> None:
    assert draw(genome, allele(500, CONTIG[499], other(CONTIG[499])), 0)[1] == []


@settings(max_examples=200, deadline=None)
@given(choice=st.data())
def test_whatever_the_variant_the_others_can_be_scored(
    choice: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sequence = choice.draw(st.text("ACGTacN", min_size=1, max_size=40))
    at = choice.draw(st.integers(0, len(sequence) - 1))
    one = allele(
        at + 1,
        sequence[at : at + choice.draw(st.integers(1, 5))],
        choice.draw(st.text("ACGTg", min_size=1, max_size=5)),
    )
    rule = WindowRule(length=choice.draw(st.integers(1, 50)))
    genome = reference(tmp_path_factory.getbasetemp(), sequence)
    window, made = draw(genome, one, 50, rule=rule)
    if window.status != "ok":
        assert made == []
        return
    outcomes = [haplotypes(sequence, item.pos, item.ref, item.alt)[1] for item in (one, *made)]
    assert len(set(outcomes)) == len(outcomes), "no two are the same change"
    for item in made:
        assert variant_window(genome, item, rule).status is VariantStatus.OK
        assert len(item.ref) - len(item.alt) == len(one.ref) - len(one.alt)
