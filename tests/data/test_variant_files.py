"""From a file to windows: every kind of allele and every way of writing the file, each allele accounted for."""

import gzip
import io
import random
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pysam
import pytest

from data.alignment import is_normalised
from data.errors import DataError
from data.reference import Reference
from data.variants import WindowRule, variant_window
from data.vcf import read_vcf
from tests.data.haplotypes import haplotypes, read_contigs, window_haplotypes

WINDOW = 12
FASTA = """>chr1 made up
ACGTTGCAAGGCTTAACCGATTTGCGCATATCCGGATTAC
>chr2
acgtnnryacgtacacacac
>chrM
GATTACA
"""
HEADER = """##fileformat=VCFv4.3
##contig=<ID=chr1,length=40>
##contig=<ID=2,length=20>
##contig=<ID=MT,length=7>
##contig=<ID=chr3>
##ALT=<ID=DEL,Description="Deletion">
##ALT=<ID=NON_REF,Description="Any">
##INFO=<ID=END,Number=1,Type=Integer,Description="x">
##INFO=<ID=SVLEN,Number=A,Type=Integer,Description="x">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
"""
# contig, position, id, REF, ALT; for every ALT its status and whether it is in normal form
RECORDS: list[tuple[str, int, str, str, str, list[tuple[str, bool]]]] = [
    ("chr1", 1, "rs1", "A", "G,T", [("ok", True), ("ok", True)]),
    ("chr1", 18, ".", "C", "CTT,<DEL>,*,G", [("ok", True), ("symbolic", False), ("star", False), ("ok", True)]),
    ("chr1", 18, "same_site", "C", "G", [("ok", True)]),
    ("chr1", 17, "overlaps", "CCG", "C", [("ok", True)]),
    ("chr1", 13, "unsorted", "TTAA", "GGCC", [("ok", True)]),
    ("chr1", 40, "last", "C", "CAT,A", [("ok", True), ("ok", True)]),
    ("chr1", 38, "to the end", "TAC", "T", [("ok", True)]),
    ("chr1", 39, "beyond", "ACG", "A", [("out_of_range", False)]),
    ("chr1", 41, ".", "A", "C", [("out_of_range", False)]),
    ("chr1", 0, "telomere", "N", "A", [("out_of_range", False)]),
    ("chr1", 2, ".", "C", ".", [("no_alt", False)]),
    ("chr1", 2, ".", "G", "C", [("ref_mismatch", False)]),
    ("chr1", 2, ".", "C", "N,<NON_REF>", [("non_ACGT", False), ("symbolic", False)]),
    ("chr1", 2, ".", "C", "]chr2:3]C,C[chr2:3[", [("breakend", False), ("breakend", False)]),
    ("chr1", 2, "long", "C", "C" + "ACGT" * 3, [("exceeds_window", False)]),
    ("2", 2, "soft", "C", "T", [("ok", True)]),
    ("2", 5, "unknown", "N", "A", [("non_ACGT", False)]),
    ("2", 7, "ambiguous", "R", "A", [("non_ACGT", False)]),
    ("2", 19, "not left", "AC", "A", [("ok", True)]),
    ("2", 18, "repeat", "CAC", "C", [("ok", False)]),
    ("MT", 3, "short contig", "TT", "T", [("ok", False)]),
    ("MT", 7, "end", "A", "AGG", [("ok", True)]),
    ("chr3", 3, "missing", "A", "C", [("missing_contig", False)]),
]
TEXT = HEADER + "".join(f"{c}\t{p}\t{i}\t{r}\t{a}\t.\tPASS\t.\n" for c, p, i, r, a, _ in RECORDS)
EXPECTED = [
    (chrom, pos, name, ref, alt, status)
    for chrom, pos, name, ref, alts, outcomes in RECORDS
    for alt, (status, _) in zip(alts.split(","), outcomes, strict=True)
]


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("genome") / "reference.fa"
    path.write_text(FASTA)
    return Reference(path)


def outcomes(path: Path | str, genome: Reference) -> list[tuple[str, int, str, str, str, str]]:
    rule = WindowRule(length=WINDOW)
    return [
        (one.chrom, one.pos, one.id, one.ref, one.alt, str(variant_window(genome, one, rule).status))
        for one in read_vcf(path)
    ]


WAYS = {
    "plain": TEXT.encode(),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "no final newline": TEXT[:-1].encode(),
    "empty lines": TEXT.replace("chr1\t18", "\n\nchr1\t18").encode(),
    "trailing tabs": TEXT.replace("PASS\t.\n", "PASS\t.\t\t\n").encode(),
    "byte-order mark": ("\ufeff" + TEXT).encode(),
    "gzip": gzip.compress(TEXT.encode()),
    "gzip in two members": gzip.compress(TEXT[:900].encode()) + gzip.compress(TEXT[900:].encode()),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_allele_has_its_status_however_the_file_is_written(tmp_path: Path, genome: Reference, way: str) -> None:
    path = tmp_path / "variants"
    path.write_bytes(WAYS[way])
    assert outcomes(path, genome) == EXPECTED


def test_bgzip_standard_input_and_bcf(tmp_path: Path, genome: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, zipped = tmp_path / "plain.vcf", tmp_path / "variants.vcf.gz"
    plain.write_text(TEXT)
    pysam.tabix_compress(str(plain), str(zipped))
    assert outcomes(zipped, genome) == EXPECTED

    class Stdin:
        buffer = io.BytesIO(zipped.read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert outcomes("-", genome) == EXPECTED
    binary = tmp_path / "variants.bcf"
    with pysam.VariantFile(str(zipped)) as source, pysam.VariantFile(str(binary), "wb", header=source.header) as file:
        for record in source:
            file.write(record)
    assert outcomes(binary, genome) == EXPECTED


def test_windows_are_what_editing_the_text_gives(tmp_path: Path, genome: Reference) -> None:
    contigs = read_contigs(FASTA)
    (tmp_path / "a.vcf").write_text(TEXT)
    counts: Counter[str] = Counter()
    for one in read_vcf(tmp_path / "a.vcf"):
        made = variant_window(genome, one, WindowRule(length=WINDOW))
        counts[str(made.status)] += 1
        if made.status != "ok":
            continue
        contig = genome.resolve(one.chrom)
        assert contig is not None
        old, new = haplotypes(contigs[contig], one.pos, one.ref, one.alt)
        assert len(made.ref) == len(made.alt) == min(WINDOW, len(old), len(new))
        if made.offset == made.alt_offset:
            assert (made.ref.decode(), made.alt.decode()) == window_haplotypes(
                contigs[contig], one.pos, one.ref, one.alt, made.start, len(made.ref)
            )
        else:  # at the right end, both reach to it
            assert old.endswith(made.ref.decode()) or new.endswith(made.alt.decode())
    assert counts == Counter(status for *_, status in EXPECTED)


def test_normal_form_is_told(tmp_path: Path, genome: Reference) -> None:
    (tmp_path / "a.vcf").write_text(TEXT)
    expected = [normal for *_, outcomes in RECORDS for status, normal in outcomes if status == "ok"]
    told = []
    for one, (*_, status) in zip(read_vcf(tmp_path / "a.vcf"), EXPECTED, strict=True):
        contig = genome.resolve(one.chrom)
        if status == "ok" and contig is not None:
            told.append(is_normalised(genome, contig, one))
    assert told == expected


def test_names_of_contigs_are_said(tmp_path: Path) -> None:
    (tmp_path / "r.fa").write_text(FASTA)
    (tmp_path / "a.vcf").write_text(TEXT)
    genome = Reference(tmp_path / "r.fa")
    outcomes(tmp_path / "a.vcf", genome)
    assert genome.names.notes() == [f"contig names: `2` is `chr2` of {tmp_path / 'r.fa'} (1 more)"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text, at: text[:at],
        lambda text, at: text[:at] + b"\x00\xff" + text[at:],
        lambda text, at: text[:at] + b"\t" + text[at:],
        lambda text, at: text[:at] + b"\n" + text[at:],
        lambda text, at: text[:at] + text[at + 3 :],
    ],
)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, genome: Reference, damage: Callable[[bytes, int], bytes]
) -> None:
    rng = random.Random(0)
    for whole in (TEXT.encode(), gzip.compress(TEXT.encode(), mtime=0)):
        for at in rng.sample(range(len(whole)), 60):
            path = tmp_path / "a.vcf"
            path.write_bytes(damage(whole, at))
            with suppress(DataError):
                outcomes(path, genome)
