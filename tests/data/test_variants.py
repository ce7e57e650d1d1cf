"""Variant windows against whole haplotypes: contig with the allele spliced in by hand, then sliced."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.reference import Reference
from data.variants import IndelMode, VariantStatus, VariantWindow, WindowRule, variant_window
from data.vcf import Allele

CONTIG = "ACGTTGCAAGGCTTAACCGATTTGCGCATATCCGGA"


def reference(folder: Path, contigs: dict[str, str]) -> Reference:
    path = folder / "reference.fa"
    path.write_text("".join(f">{name} note\n{sequence}\n" for name, sequence in contigs.items()))
    return Reference(path)


def allele(pos: int, ref: str, alt: str, chrom: str = "chr1") -> Allele:
    return Allele(chrom=chrom, pos=pos, id=".", ref=ref, alt=alt)


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    contigs = {"chr1": CONTIG, "soft": "acgtNNRYacgt", "MT": "ACGT", "2": "ACGT"}
    return reference(tmp_path_factory.mktemp("genome"), contigs)


@pytest.mark.parametrize(
    ("chrom", "pos", "ref", "alt", "status"),
    [
        ("chr1", 1, "A", "C", "ok"),
        ("chr1", 36, "A", "C", "ok"),
        ("chr1", 1, "ACG", "A", "ok"),
        ("soft", 2, "C", "t", "ok"),
        ("soft", 2, "cg", "A", "ok"),
        ("1", 1, "A", "C", "ok"),
        ("chr2", 1, "A", "C", "ok"),
        ("chrM", 1, "A", "C", "ok"),
        ("M", 1, "A", "C", "ok"),
        ("chr3", 1, "A", ".", "missing_contig"),
        ("Chr1", 1, "A", "C", "missing_contig"),
        ("chr1", 0, "A", ".", "out_of_range"),
        ("chr1", 37, "A", "*", "out_of_range"),
        ("chr1", 36, "AC", "A", "out_of_range"),
        ("chr1", 10**17, "A", "C", "out_of_range"),
        ("chr1", 1, "T", ".", "no_alt"),
        ("chr1", 1, "T", "*", "star"),
        ("chr1", 1, "T", "<*>", "star"),
        ("chr1", 1, "T", "<DEL>", "symbolic"),
        ("chr1", 1, "T", "<NON_REF>", "symbolic"),
        ("chr1", 1, "T", "]chrB:123]AGT", "breakend"),
        ("chr1", 1, "T", "C[chr2:3[", "breakend"),
        ("chr1", 1, "T", "TC.", "breakend"),
        ("chr1", 1, "T", ".C", "breakend"),
        ("chr1", 1, "C", "N", "ref_mismatch"),
        ("chr1", 1, ".", "C", "ref_mismatch"),
        ("chr1", 1, "A", "N", "non_ACGT"),
        ("chr1", 1, "A", "CI", "non_ACGT"),
        ("soft", 5, "NN", "N", "non_ACGT"),
        ("soft", 7, "R", "A", "non_ACGT"),
        ("chr1", 1, "A", "a", "ref_eq_alt"),
        ("soft", 1, "A", "a", "ref_eq_alt"),
    ],
)
def test_status(genome: Reference, chrom: str, pos: int, ref: str, alt: str, status: str) -> None:
    made = variant_window(genome, allele(pos, ref, alt, chrom))
    assert made.status == status
    if status != "ok":
        assert made == VariantWindow(status=VariantStatus(status))


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "window", "expected_ref", "expected_alt", "start", "offset"),
    [
        # in the middle: at index window // 2, equally long, left edges the same
        (18, "C", "G", 8, "TAACCGAT", "TAACGGAT", 13, 4),
        (17, "C", "G", 7, "TAACCGA", "TAAGCGA", 13, 3),
        (17, "C", "CTT", 8, "TTAACCGA", "TTAACTTC", 12, 4),
        (17, "CCGA", "C", 8, "TTAACCGA", "TTAACTTT", 12, 4),
        # at the left end: shifted, not padded
        (1, "A", "T", 8, "ACGTTGCA", "TCGTTGCA", 0, 0),
        (3, "G", "C", 8, "ACGTTGCA", "ACCTTGCA", 0, 2),
        # at the right end: shifted; a deletion shifts further, so that both are full
        (36, "A", "C", 8, "TATCCGGA", "TATCCGGC", 28, 7),
        (32, "CCG", "C", 8, "CATATCCG", "CATATCGA", 26, 5),
        # a window longer than the contig
        (36, "A", "C", 99, CONTIG, CONTIG[:-1] + "C", 0, 35),
        (1, "A", "AT", 99, CONTIG, ("AT" + CONTIG[1:])[:36], 0, 0),
        (1, "AC", "A", 99, CONTIG[:35], "A" + CONTIG[2:], 0, 0),
        # a window of one base
        (5, "T", "A", 1, "T", "A", 4, 0),
    ],
)
def test_windows_by_hand(
    genome: Reference,
    pos: int,
    ref: str,
    alt: str,
    window: int,
    expected_ref: str,
    expected_alt: str,
    start: int,
    offset: int,
) -> None:
    made = variant_window(genome, allele(pos, ref, alt), WindowRule(length=window))
    assert (made.status, made.ref.decode(), made.alt.decode()) == ("ok", expected_ref, expected_alt)
    assert (made.start, made.offset, made.alt_offset) == (start, offset, offset)


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "window", "expected_ref", "expected_alt", "start", "offset", "alt_offset"),
    [
        # an insertion after the last base would fall off the alternative: its window begins further right
        (36, "A", "ATT", 8, "TATCCGGA", "TCCGGATT", 28, 7, 5),
        (36, "A", "ATT", 99, CONTIG, CONTIG[2:] + "TT", 0, 35, 33),
        # a deletion of the last bases would fall off the reference
        (34, "GGA", "G", 8, "TATCCGGA", "CATATCCG", 28, 5, 7),
        (34, "GGA", "G", 99, CONTIG[2:], CONTIG[:34], 2, 31, 33),
    ],
)
def test_alleles_are_not_cut_off_at_the_right_end(
    genome: Reference, pos: int, ref: str, alt: str, window: int, expected_ref: str, expected_alt: str,
    start: int, offset: int, alt_offset: int,
) -> None:  # fmt: skip
    made = variant_window(genome, allele(pos, ref, alt), WindowRule(length=window))
    assert (made.status, made.ref.decode(), made.alt.decode()) == ("ok", expected_ref, expected_alt)
    assert (made.start, made.offset, made.alt_offset) == (start, offset, alt_offset)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, int, str, str, int]:
    contig = draw(st.text("ACGTacgtN", min_size=1, max_size=60))
    at = draw(st.integers(0, len(contig) - 1))
    ref = contig[at : at + draw(st.integers(1, 12))]
    alt = draw(st.text("ACGTacgt", min_size=1, max_size=12))
    return contig, at, ref, alt, draw(st.integers(1, 80))


@settings(max_examples=500, deadline=None)
@given(case=cases())
def test_windows_are_slices_of_the_haplotypes(
    case: tuple[str, int, str, str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    contig, at, ref, alt, window = case
    made = variant_window(
        reference(tmp_path_factory.getbasetemp(), {"chr1": contig}), allele(at + 1, ref, alt), WindowRule(length=window)
    )
    if "N" in ref:
        assert made.status == "non_ACGT"
        return
    if ref.upper() == alt.upper():
        assert made.status == "ref_eq_alt"
        return
    if max(len(ref), len(alt)) > window:
        assert made.status == "exceeds_window"
        return
    old, new = contig.upper(), (contig[:at] + alt + contig[at + len(ref) :]).upper()
    size = min(window, len(old), len(new))
    alt_start = at - made.alt_offset
    assert made.status == "ok"
    assert made.ref.decode() == old[made.start : made.start + size]
    assert made.alt.decode() == new[alt_start : alt_start + size]
    assert made.offset == at - made.start
    if max(len(ref), len(alt)) <= size:
        assert made.ref[made.offset :].startswith(ref.upper().encode())
        assert made.alt[made.alt_offset :].startswith(alt.upper().encode())
    after = len(contig) - at - len(ref)
    if after >= abs(len(alt) - len(ref)):
        assert alt_start == made.start, "with enough bases behind it both begin at the same base"
    room = at >= window // 2 and after >= window and max(len(ref), len(alt)) <= window - window // 2
    if room:
        assert made.offset == made.alt_offset == window // 2


def test_the_brca1_convention(tmp_path: Path) -> None:
    """An SNV lies at index 4,096 of 8,192 bp unless the contig ends nearer."""
    contig = "".join(random.Random(0).choices("ACGT", k=20_000))
    genome = reference(tmp_path, {"chr1": contig})
    for at, start in [(0, 0), (4096, 0), (4097, 1), (9000, 4904), (15904, 11808), (15905, 11808), (19999, 11808)]:
        alt = "A" if contig[at] != "A" else "C"
        made = variant_window(genome, allele(at + 1, contig[at], alt))
        assert (made.start, made.offset, made.alt_offset) == (start, at - start, at - start)
        assert made.ref.decode() == contig[start : start + 8192]
        assert made.alt.decode() == contig[start:at] + alt + contig[at + 1 : start + 8192]


def test_a_window_must_have_a_base() -> None:
    with pytest.raises(DataError, match="window of a variant must be at least 1 bp, got 0"):
        WindowRule(length=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 0}, "window of a variant must be at least 1 bp, got 0"),
        ({"length": 100, "share": 51}, "alleles within 1 to 50 bp, half the window, can share one, not 51"),
        ({"share": 0}, "half the window, can share one, not 0"),
        ({"max_indel": -1}, "the largest indel must be 0 bp or more, got -1"),
    ],
)
def test_a_rule_that_makes_no_window_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WindowRule(**values)  # type: ignore[arg-type]


def test_alleles_of_a_stretch_share_their_window(tmp_path: Path) -> None:
    contig = "".join(random.Random(1).choices("ACGT", k=400))
    genome = reference(tmp_path, {"chr1": contig})
    rule = WindowRule(length=64, share=16)
    starts = {}
    for at in range(len(contig)):
        alt = "A" if contig[at] != "A" else "C"
        made = variant_window(genome, allele(at + 1, contig[at], alt), rule)
        assert made.ref.decode() == contig[made.start : made.start + 64]
        assert made.alt.decode()[made.offset] == alt
        starts.setdefault(at // 16, set()).add(made.start)
        if 32 <= at < 368:
            assert made.start == at // 16 * 16 + 8 - 32
            assert 24 <= made.offset < 40
    assert all(len(found) == 1 for found in starts.values())
    # what does not fit beside the others moves its window
    long = variant_window(genome, allele(112, contig[111:159], "A"), rule)
    assert (long.start, long.ref.decode()[long.offset :]) == (111 + 48 - 64, contig[111:159])


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "expected_ref", "expected_alt"),
    [
        (17, "C", "CTT", "TTAACCGA", "TTAACTTCGA"),
        (17, "CCGA", "C", "TTAACCGA", "TTAAC"),
        (36, "A", "ATT", "TATCCGGA", "TATCCGGATT"),
        (34, "GGA", "G", "TATCCGGA", "TATCCG"),
        (1, "A", "G" * 8, "ACGTTGCA", "G" * 8 + "CGTTGCA"),
    ],
)
def test_appended_alternatives_end_where_the_reference_does(
    genome: Reference, pos: int, ref: str, alt: str, expected_ref: str, expected_alt: str
) -> None:
    made = variant_window(genome, allele(pos, ref, alt), WindowRule(length=8, indels=IndelMode.APPEND))
    assert (made.status, made.ref.decode(), made.alt.decode()) == ("ok", expected_ref, expected_alt)
    assert made.ref[: made.offset] == made.alt[: made.alt_offset]


def test_what_a_rule_lets_pass(genome: Reference) -> None:
    longer = allele(17, "C", "CTTT")
    assert variant_window(genome, longer, WindowRule(max_indel=2)).status == "indel_too_long"
    assert variant_window(genome, longer, WindowRule(max_indel=3)).status == "ok"
    wrong = allele(17, "G", "T")
    assert variant_window(genome, wrong).status == "ref_mismatch"
    made = variant_window(genome, wrong, WindowRule(length=8, ignore_ref=True))
    assert (made.status, made.ref, made.alt) == ("ok", b"TTAACCGA", b"TTAATCGA")
