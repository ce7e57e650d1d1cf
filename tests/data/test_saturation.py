"""Saturation: every SNV of the regions once, in order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import saturation as saturation_module
from data.errors import DataError
from data.intervals import Interval
from data.reference import Reference
from data.saturation import saturate
from data.vcf import Allele

CONTIGS = {"chr2": "ACGTNRacgtn", "chr1": "GATTACA", "MT": "T"}


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("genome") / "reference.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in CONTIGS.items()))
    return Reference(path)


def rows(genome: Reference, *regions: str) -> list[str]:
    alleles = list(saturate(genome, map(Interval.parse, regions)))
    assert {allele.id for allele in alleles} <= {"."}
    return [f"{allele.chrom}:{allele.pos}{allele.ref}>{allele.alt}" for allele in alleles]


A2, C2 = ["chr2:1A>C", "chr2:1A>G", "chr2:1A>T"], ["chr2:2C>A", "chr2:2C>G", "chr2:2C>T"]
G1, A1 = ["chr1:1G>A", "chr1:1G>C", "chr1:1G>T"], ["chr1:2A>C", "chr1:2A>G", "chr1:2A>T"]


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        (["chr2:1-2"], [*A2, *C2]),
        # soft-masked is upper-case; what is no base gives nothing
        (["chr2:5-7"], ["chr2:7A>C", "chr2:7A>G", "chr2:7A>T"]),
        (["chr2:5-6"], []),
        # overlapping, twice, touching, within another
        (["chr2:1-2", "chr2:2-2", "chr2:1-2"], [*A2, *C2]),
        (["chr2:2-2", "chr2:1-1"], [*A2, *C2]),
        (["chr1:1-1", "chr1:1-2"], [*G1, *A1]),
        # in the order of the reference
        (["chr1:1-1", "chr2:1-1"], [*A2, *G1]),
        # called as the reference calls it
        (["2:1-1", "chrM:1-1"], [*A2, "MT:1T>A", "MT:1T>C", "MT:1T>G"]),
        ([], []),
    ],
)
def test_alleles(genome: Reference, regions: list[str], expected: list[str]) -> None:
    assert rows(genome, *regions) == expected


def test_what_is_known_before_and_after(genome: Reference) -> None:
    made = saturate(genome, [Interval("chr2", 3, 11), Interval("chr2", 0, 4), Interval("1", 0, 1)])
    assert made.intervals == [Interval("chr2", 0, 11), Interval("chr1", 0, 1)]
    assert made.bases == 12
    assert next(made) == Allele(chrom="chr2", pos=1, id=".", ref="A", alt="C")
    assert made.skipped == 0
    assert len(list(made)) == 3 * (made.bases - made.skipped) - 1
    assert made.skipped == 3


@settings(max_examples=100, deadline=None)
@given(regions=st.lists(st.tuples(st.sampled_from(["chr1", "2", "MT"]), st.integers(0, 11), st.integers(0, 11))))
def test_every_base_of_every_region_once(genome: Reference, regions: list[tuple[str, int, int]]) -> None:
    spans = [("chr2" if name == "2" else name, start, end) for name, start, end in regions]
    spans = [(name, start, end) for name, start, end in spans if start < end <= len(CONTIGS[name])]
    expected = [
        (name, at + 1, base.upper(), alt)
        for name, sequence in CONTIGS.items()
        for at, base in enumerate(sequence)
        if base.upper() in "ACGT" and any(name == contig and start <= at < end for contig, start, end in spans)
        for alt in "ACGT"
        if alt != base.upper()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saturation_module, "_PIECE", 3)
        made = list(saturate(genome, [Interval(*span) for span in spans]))
    assert [(one.chrom, one.pos, one.ref, one.alt) for one in made] == expected


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr3:1-2", "region chr3:1-2: {path} has no contig 'chr3' among its 3"),
        ("1:5-8", "region 1:5-8 ends beyond contig 'chr1' of {path}, which has 7 bp"),
    ],
)
def test_what_is_refused_before_the_first_allele(genome: Reference, region: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        saturate(genome, [Interval("chr2", 0, 1), Interval.parse(region)])
    assert str(caught.value) == message.format(path=genome.path)
