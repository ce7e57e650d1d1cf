"""Names of contigs: which stand for which, why, and what must never be taken for one another."""

import re

import pytest

from data.contig_names import ContigNames, NameMatch, NameRule
from data.errors import DataError

EXACT, PREFIX, MITOCHONDRION, ACCESSION, UNCHECKED = NameRule

GRCH37_1, GRCH38_1, CHM13_1, GRCM38_1, GRCM39_1 = 249_250_621, 248_956_422, 248_387_328, 195_471_971, 195_154_279


@pytest.mark.parametrize(
    ("contigs", "name", "found"),
    [
        # by name alone
        ({"chr1": 9}, "chr1", ("chr1", EXACT)),
        ({"chr1": 9}, "1", ("chr1", PREFIX)),
        ({"1": 9}, "chr1", ("1", PREFIX)),
        ({"1": 9, "chr1": 9}, "1", ("1", EXACT)),
        ({"chrUn_KI270742v1": 9}, "Un_KI270742v1", ("chrUn_KI270742v1", PREFIX)),
        ({"MT": 9}, "chrM", ("MT", MITOCHONDRION)),
        ({"chrM": 9}, "MT", ("chrM", MITOCHONDRION)),
        ({"chrM": 16571, "chrMT": 16569}, "MT", ("chrMT", PREFIX)),
        ({"chrM": 16571, "chrMT": 16569}, "M", ("chrM", PREFIX)),
        ({"chr1": 9}, "CHR1", None),
        ({"chr1": 9}, "2", None),
        ({"chr1": 9}, "chr", None),
        ({"chr1": 9}, "", None),
        # an accession in the file, a name in the reference: the length must be the assembly's
        ({"chr1": GRCH38_1}, "NC_000001.11", ("chr1", ACCESSION)),
        ({"1": GRCH38_1}, "CM000663.2", ("1", ACCESSION)),
        ({"chr1": GRCH37_1}, "NC_000001.10", ("chr1", ACCESSION)),
        ({"chr1": GRCH37_1}, "CM000663.1", ("chr1", ACCESSION)),
        ({"chr1": CHM13_1}, "NC_060925.1", ("chr1", ACCESSION)),
        ({"chr1": CHM13_1}, "CP068277.2", ("chr1", ACCESSION)),
        ({"chrY": 62_460_029}, "NC_060948.1", ("chrY", ACCESSION)),
        ({"chrY": 62_460_029}, "CP086569.2", ("chrY", ACCESSION)),
        ({"chrX": 154_259_566}, "CP068255.2", ("chrX", ACCESSION)),
        ({"chr1": GRCM38_1}, "NC_000067.6", ("chr1", ACCESSION)),
        ({"chr1": GRCM39_1}, "NC_000067.7", ("chr1", ACCESSION)),
        ({"chr2": 182_113_224}, "NC_000068.7", ("chr2", ACCESSION)),
        ({"chr2": 181_755_017}, "NC_000068.8", ("chr2", ACCESSION)),
        ({"X": 169_476_592}, "NC_000086.8", ("X", ACCESSION)),
        ({"Y": 91_744_698}, "CM001014.2", ("Y", ACCESSION)),
        ({"chr22": 51_304_566}, "NC_000022.10", ("chr22", ACCESSION)),
        ({"chrX": 156_040_895}, "NC_000023.11", ("chrX", ACCESSION)),
        ({"chrM": 16569}, "NC_012920.1", ("chrM", ACCESSION)),
        ({"MT": 16569}, "J01415.2", ("MT", ACCESSION)),
        ({"MT": 16299}, "NC_005089.1", ("MT", ACCESSION)),
        ({"chrM": 16571}, "NC_001807.4", ("chrM", ACCESSION)),
        # never another assembly, nor another chromosome
        ({"chr1": GRCH38_1}, "NC_000001.10", None),
        ({"chr1": GRCH37_1}, "NC_000001.11", None),
        ({"chr1": GRCH38_1}, "NC_060925.1", None),
        ({"1": GRCM39_1}, "NC_000001.11", None),
        ({"1": GRCH38_1}, "NC_000067.7", None),
        ({"chrM": 16571}, "NC_012920.1", None),
        ({"MT": 16299}, "NC_012920.1", None),
        ({"NC_000001.11": GRCH38_1}, "NC_000001.10", None),
        ({"NC_000001.11": GRCH38_1}, "NC_000002.12", None),
        ({"NC_001807.4": 16571}, "NC_012920.1", None),
        ({"chr2": GRCH38_1}, "NC_000001.11", None),
        ({"chr1": GRCH38_1}, "NC_000001", None),
        ({"chr1": GRCH38_1}, "NC_000001.99", None),
        # an accession in the reference
        ({"NC_000001.11": GRCH38_1}, "chr1", ("NC_000001.11", ACCESSION)),
        ({"NC_000001.11": GRCH38_1}, "1", ("NC_000001.11", ACCESSION)),
        ({"NC_000001.11": GRCH38_1}, "CM000663.2", ("NC_000001.11", ACCESSION)),
        ({"CM000663.2": 9}, "NC_000001.11", ("CM000663.2", ACCESSION)),
        ({"NC_000067.7": GRCM39_1}, "chr1", ("NC_000067.7", ACCESSION)),
        ({"NC_012920.1": 16569}, "chrM", ("NC_012920.1", ACCESSION)),
        ({"NC_012920.1": 16569}, "M", ("NC_012920.1", ACCESSION)),
        # a length that tells nothing
        ({"chr1": 1000}, "NC_000001.11", ("chr1", UNCHECKED)),
        ({"NC_000001.11": 1000}, "chr1", ("NC_000001.11", UNCHECKED)),
        # a length that tells goes before one that does not
        ({"1": 1000, "chr1": GRCH38_1}, "NC_000001.11", ("chr1", ACCESSION)),
        ({"chr1": GRCH37_1, "1": GRCH38_1}, "NC_000001.11", ("1", ACCESSION)),
    ],
)
def test_match(contigs: dict[str, int], name: str, found: tuple[str, NameRule] | None) -> None:
    names = ContigNames(contigs, "ref.fa")
    for _ in range(2):  # the second time from memory
        match = names.match(name)
        assert (match and (match.contig, match.rule)) == found


@pytest.mark.parametrize(
    ("contigs", "name", "listed"),
    [
        (["chrMT", "MT"], "M", "`MT`, `chrMT`"),
        (["1", "chr1"], "NC_000001.11", "`1`, `chr1`"),
        (["NC_000001.11", "NC_000067.7"], "chr1", "`NC_000001.11`, `NC_000067.7`"),
        (["NC_000001.10", "NC_000001.11"], "1", "`NC_000001.10`, `NC_000001.11`"),
    ],
)
def test_what_could_be_several_contigs_is_refused(contigs: list[str], name: str, listed: str) -> None:
    names = ContigNames(dict.fromkeys(contigs, 100), "ref.fa")
    with pytest.raises(DataError) as caught:
        names.match(name)
    assert str(caught.value) == f"contig `{name}` could be any of {listed} of ref.fa"


def test_unchecked_names_are_of_one_assembly() -> None:
    names = ContigNames({"chr1": 10, "chr2": 20, "chr3": 30, "chrM": 40}, "ref.fa")
    assert names.match("NC_000001.11")
    assert names.match("NC_012920.1"), "the mitochondrion of GRCh37 is that of GRCh38"
    assert names.match("CM000664.2")
    with pytest.raises(DataError) as caught:
        names.match("NC_000003.11")
    assert str(caught.value) == "contig `NC_000003.11` is chromosome 3 of GRCh37, but other names are of GRCh38"


HUMAN = [*map(str, range(1, 23)), "X", "Y"]
# as the assembly reports list them
ACCESSIONS = {
    "GRCh37": "1.10 2.11 3.11 4.11 5.9 6.11 7.13 8.10 9.11 10.10 11.9 12.11 13.10 14.8 15.9 16.9 17.10 18.9 19.9 20.10"
    " 21.8 22.10 23.10 24.9",
    "GRCh38": "1.11 2.12 3.12 4.12 5.10 6.12 7.14 8.11 9.12 10.11 11.10 12.12 13.11 14.9 15.10 16.10 17.11 18.10 19.10"
    " 20.11 21.9 22.11 23.11 24.10",
    "T2T-CHM13v2.0": " ".join(f"{number}.1" for number in range(60925, 60949)),
    "GRCm38": "67.6 68.7 69.6 70.6 71.6 72.6 73.6 74.6 75.6 76.6 77.6 78.6 79.6 80.6 81.6 82.6 83.6 84.6 85.6"
    " 86.7 87.7",
    "GRCm39": "67.7 68.8 69.7 70.7 71.7 72.7 73.7 74.7 75.7 76.7 77.7 78.7 79.7 80.7 81.7 82.7 83.7 84.7 85.7"
    " 86.8 87.8",
}
# sums of the lengths without the mitochondrion
TOTAL = {
    "GRCh37": 3_095_677_412,
    "GRCh38": 3_088_269_832,
    "T2T-CHM13v2.0": 3_117_275_501,
    "GRCm38": 2_725_521_370,
    "GRCm39": 2_723_414_844,
}


@pytest.mark.parametrize("assembly", ACCESSIONS)
def test_the_table_of_accessions(assembly: str) -> None:
    """Each accession is its chromosome and no other; the lengths that it is known by add up to the assembly's."""
    accessions = [f"NC_{int(number):06d}.{version}" for number, version in
                  (text.split(".") for text in ACCESSIONS[assembly].split())]  # fmt: skip
    names = HUMAN if assembly[3] != "m" else [*HUMAN[:19], "X", "Y"]
    total = 0
    for accession, name in zip(accessions, names, strict=True):
        reference = ContigNames({f"chr{one}": 5 for one in names}, "ref.fa")
        match = reference.match(accession)
        assert match
        assert match.contig == f"chr{name}"
        stated = re.search(r"not the ([0-9,]+) bp of chromosome (\w+) of (.+):", reference.notes()[0])
        assert stated
        assert stated.groups()[1:] == (name, assembly)
        length = int(stated[1].replace(",", ""))
        assert ContigNames({name: length}, "ref.fa").match(accession) == NameMatch(accession, name, ACCESSION)
        total += length
    assert total == TOTAL[assembly]


@pytest.mark.parametrize(
    ("contigs", "asked", "notes"),
    [
        ({"chr1": 9}, ["chr1", "x"], []),
        ({"chr1": 9}, ["1", "1"], ["contig names: `1` is `chr1` of ref.fa"]),
        ({"chr1": 9, "chr2": 9, "chrM": 9}, ["2", "1", "MT"], ["contig names: `2` is `chr2` of ref.fa (2 more)"]),
        (
            {"chr1": 1000},
            ["NC_000001.11"],
            [
                "contig names: `NC_000001.11` is taken for `chr1` of ref.fa, which has 1,000 bp, not the 248,956,422 bp"
                " of chromosome 1 of GRCh38: check that they belong together"
            ],
        ),
        (
            {"chr1": GRCH38_1, "chr2": 242_193_529},
            ["NC_000001.10", "NC_000002.11", "NC_000001.10"],
            [
                "contig names: `NC_000001.10` is chromosome 1 of GRCh37, but `chr1` of ref.fa has the length of"
                " chromosome 1 of GRCh38: not matched (1 more)"
            ],
        ),
        ({"chr1": GRCH37_1, "1": GRCH38_1}, ["NC_000001.11"], ["contig names: `NC_000001.11` is `1` of ref.fa"]),
        (
            {"NC_000001.11": GRCH38_1},
            ["NC_000001.10"],
            [
                "contig names: `NC_000001.10` is chromosome 1 of GRCh37, but `NC_000001.11` of ref.fa is chromosome 1"
                " of GRCh38: not matched"
            ],
        ),
    ],
)
def test_notes(contigs: dict[str, int], asked: list[str], notes: list[str]) -> None:
    names = ContigNames(contigs, "ref.fa")
    for name in asked:
        names.match(name)
    assert names.notes() == notes
