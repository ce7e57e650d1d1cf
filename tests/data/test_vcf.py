"""Reading VCF and BCF: every allele in order, and an error with its line for what is no VCF."""

import gzip
import io
import sys
from pathlib import Path

import pysam
import pytest

from data.errors import DataError
from data.vcf import Allele, read_vcf

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
FULL_HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=1000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
ROWS = "chr1\t5\trs1\tA\tG,TT,<DEL>\t.\tPASS\t.\nchr1\t9\t.\tC\t.\t.\t.\t.\nchr1\t7\tx y\tGT\t*\t.\t.\t.\n"
ALLELES = [
    ("chr1", 5, "rs1", "A", "G"),
    ("chr1", 5, "rs1", "A", "TT"),
    ("chr1", 5, "rs1", "A", "<DEL>"),
    ("chr1", 9, ".", "C", "."),
    ("chr1", 7, "x y", "GT", "*"),
]


def alleles(path: str | Path) -> list[tuple[str, int, str, str, str]]:
    return [(a.chrom, a.pos, a.id, a.ref, a.alt) for a in read_vcf(path)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_one_allele_for_every_alt_in_order(tmp_path: Path) -> None:
    assert alleles(write(tmp_path / "a.vcf", HEADER + ROWS)) == ALLELES


@pytest.mark.parametrize("name", ["a.vcf.gz", "odd.name"])
def test_gzip_and_bgzip_whatever_the_name(tmp_path: Path, name: str) -> None:
    text = (HEADER + ROWS).encode()
    assert alleles(write(tmp_path / name, gzip.compress(text))) == ALLELES
    path = tmp_path / f"b{name}"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(text)
    assert alleles(path) == ALLELES


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO((HEADER + ROWS).encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert alleles("-") == ALLELES


def write_bcf(path: Path) -> None:
    header = pysam.VariantHeader()
    header.add_line("##contig=<ID=chr1,length=1000>")
    with pysam.VariantFile(str(path), "wb", header=header) as file:
        file.write(header.new_record("chr1", 4, 5, alleles=("A", "G", "TT"), id="rs1"))
        file.write(header.new_record("chr1", 8, 9, alleles=("C", "*")))


def test_bcf_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "variants"
    write_bcf(path)
    assert alleles(path) == [*ALLELES[:2], ("chr1", 9, ".", "C", "*")]


def test_bcf_without_an_alternative(tmp_path: Path) -> None:
    """pysam writes no record without ALT itself, but takes one over from text."""
    text, path = write(tmp_path / "a.vcf", FULL_HEADER + "chr1\t9\t.\tC\t.\t.\t.\t.\n"), tmp_path / "a.bcf"
    with pysam.VariantFile(str(text)) as source, pysam.VariantFile(str(path), "wb", header=source.header) as file:
        for record in source:
            file.write(record)
    assert alleles(path) == [("chr1", 9, ".", "C", ".")]


def test_a_damaged_bcf_is_refused_with_its_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.bcf"
    write_bcf(path)
    path.write_bytes(gzip.decompress(path.read_bytes())[:-7])
    with pytest.raises(DataError, match=r"a\.bcf: record 2: cannot be read as BCF"):
        alleles(path)
    assert capfd.readouterr() == ("", "")


def test_a_bcf_in_gzip_that_is_not_bgzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bcf"
    write_bcf(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    with pytest.raises(DataError, match=r"a\.bcf: record 1: cannot be read as BCF"):
        alleles(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER, []),
        ((HEADER + ROWS).replace("\n", "\r\n"), ALLELES),
        ((HEADER + ROWS).rstrip("\n"), ALLELES),
        (HEADER + ROWS + "\n\n", ALLELES),
        ("#CHROM\tPOS\tID\tREF\tALT\nchr1\t5\t.\tA\tC\n", [("chr1", 5, ".", "A", "C")]),
        ("#CHROM\tPOS\tID\tREF\tALT\nchr1\t5\t.\tA\tC\t9\tPASS\n", [("chr1", 5, ".", "A", "C")]),
        (HEADER + "HLA:1*2\t0\t.\ta\tn\t.\t.\t.\n", [("HLA:1*2", 0, ".", "a", "n")]),
        (HEADER + "1\t2147483648999\t.\t.\tc\t.\t.\t.\n", [("1", 2147483648999, ".", ".", "c")]),
        (HEADER + "1\t07\té\tA\tC\t.\t.\t.\n", [("1", 7, "é", "A", "C")]),
        ("\ufeff" + HEADER + ROWS, ALLELES),
    ],
)
def test_what_is_read(tmp_path: Path, text: str, expected: list[tuple[str, int, str, str, str]]) -> None:
    assert alleles(write(tmp_path / "a.vcf", text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.vcf: not VCF: the file is empty"),
        ("##fileformat=VCFv4.2\n", "a.vcf: not VCF: the file has no line #CHROM POS ID REF ALT ..."),
        (">chr1\nACGT\n", "a.vcf: line 1: no VCF header: '>chr1' stands before #CHROM"),
        ("##x\nchr1\t5\t.\tA\tC\n", "a.vcf: line 2: no VCF header: 'chr1\\t5\\t.\\tA\\tC' stands before #CHROM"),
        ("#CHROM POS ID REF ALT\n", "a.vcf: line 1: the columns are '#CHROM POS ID REF ALT', not #CHROM POS ID REF"),
        (HEADER + "chr1\t5\t.\tA\tC\n", "a.vcf: line 3: 5 columns, the header names 8: 'chr1\\t5\\t.\\tA\\tC'"),
        (HEADER + ROWS + "chr1 5 . A C . . .\n", "a.vcf: line 6: 1 columns, the header names 8"),
        (HEADER + ROWS + HEADER, "a.vcf: line 6: a header line '##fileformat=VCFv4.2' among the records"),
        (
            HEADER + "1\t-5\t.\tA\tC\t.\t.\t.\n",
            "a.vcf: line 3: POS must be a whole number of at most 18 digits, got '-5'",
        ),
        (HEADER + "1\t\t.\tA\tC\t.\t.\t.\n", "a.vcf: line 3: POS must be a whole number of at most 18 digits, got ''"),
        (HEADER + "1\t²\t.\tA\tC\t.\t.\t.\n", "POS must be a whole number of at most 18 digits, got '²'"),
        (HEADER + f"1\t{'9' * 5000}\t.\tA\tC\t.\t.\t.\n", "line 3: POS must be a whole number of at most 18 digits"),
        (HEADER + "\t5\t.\tA\tC\t.\t.\t.\n", "a.vcf: line 3: CHROM, ID, REF or an ALT is empty"),
        (HEADER + "1\t5\t.\t\tC\t.\t.\t.\n", "a.vcf: line 3: CHROM, ID, REF or an ALT is empty"),
        (HEADER + "1\t5\t.\tA\tC,,G\t.\t.\t.\n", "a.vcf: line 3: CHROM, ID, REF or an ALT is empty"),
        (HEADER.encode() + b"1\t5\t\xff\tA\tC\t.\t.\t.\n", "a.vcf: line 3: not UTF-8 text"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        alleles(write(tmp_path / "a.vcf", text))
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.vcf: cannot be read: No such file"):
        alleles(tmp_path / "none.vcf")


def test_a_bgzip_file_cut_between_two_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.vcf.gz"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write((HEADER + ROWS).encode())
    binary = tmp_path / "a.bcf"
    write_bcf(binary)
    for whole in (path, binary):
        whole.write_bytes(whole.read_bytes()[:-28])
        with pytest.raises(DataError) as caught:
            alleles(whole)
        assert str(caught.value) == f"{whole}: the bgzip end marker is missing: the file is truncated"


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.vcf", HEADER + ROWS + "broken\n")
    stream = read_vcf(path)
    assert next(stream) == Allele(chrom="chr1", pos=5, id="rs1", ref="A", alt="G")


def test_lines_longer_than_a_chunk(tmp_path: Path) -> None:
    long = "A" * 3_000_000
    rows = f"1\t1\t.\tA\t{long}\t.\t.\t.\n1\t2\t.\t{long}\tC\t.\t.\t.\n"
    assert [(len(a.ref), len(a.alt)) for a in read_vcf(write(tmp_path / "a.vcf", HEADER + rows))] == [
        (1, 3_000_000),
        (3_000_000, 1),
    ]
