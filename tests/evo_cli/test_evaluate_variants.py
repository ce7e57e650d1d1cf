"""`evo eval variants` as a user runs it: figures counted by hand, every form of labels, and what cannot be compared."""

import gzip
from pathlib import Path

import pytest

from tests.evo_cli.cli import evo, rows

DELTAS = {(10, "C"): "-3.0", (10, "G"): "-1.0", (20, "T"): "0.5", (30, "A"): "-2.0", (40, "A"): "NA", (50, "G"): "1.5"}
CLASSES = {
    (10, "C"): "bad",
    (10, "G"): "fine",
    (20, "T"): "fine",
    (30, "A"): "worse",
    (40, "A"): "bad",
    (60, "G"): "bad",
}
# of -delta, positives bad and worse: 3, 2 against 1, -0.5: every positive is above every negative
FITNESS = {(10, "C"): "1.5", (10, "G"): "2", (20, "T"): "4", (30, "A"): "3", (50, "G"): "."}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.tsv"
    lines = [f"chr1\t{pos}\t.\tt\t{alt}\tok\t{delta}\n" for (pos, alt), delta in DELTAS.items()]
    path.write_text("chrom\tpos\tid\tref\talt\tstatus\tdelta\n" + "".join(lines))
    return path


def write_vcf(path: Path, values: dict[tuple[int, str], str]) -> Path:
    header = (
        "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n"
        '##INFO=<ID=CLASS,Number=A,Type=String,Description="x">\n##INFO=<ID=GENE,Number=1,Type=String,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    )
    lines = []
    for pos in dict.fromkeys(pos for pos, _ in values):
        alts = [alt for other, alt in values if other == pos]
        known = ",".join(values[pos, alt] for alt in alts)
        gene = "one" if pos < 25 else "two"
        lines.append(f"chr1\t{pos}\t.\tT\t{','.join(alts)}\t.\t.\tCLASS={known};GENE={gene}\n")
    path.write_text(header + "".join(lines))
    return path


def write_table(path: Path, values: dict[tuple[int, str], str], comma: str) -> Path:
    lines = [comma.join(["chr1", str(pos), "T", alt, value]) for (pos, alt), value in values.items()]
    text = "\n".join([comma.join(["chrom", "pos", "ref", "alt", "known"]), *lines, ""])
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_classes_of_a_vcf_by_groups_with_a_picture(tmp_path: Path, scores: Path) -> None:
    labels, picture = write_vcf(tmp_path / "labels.vcf", CLASSES), tmp_path / "roc.png"
    result = evo(
        *("eval", "variants", scores, "--labels", labels, "--label", "CLASS", "--positive", "bad,worse"),
        *("--by", "GENE", "--bootstrap", 20, "--plot", picture),
    )
    assert result.returncode == 0, result.stderr
    table = {(row["group"], row["metric"]): row for row in rows(result.stdout)}
    whole = table["all", "auroc"]
    assert (whole["variants"], whole["positives"], whole["value"]) == ("4", "2", "1.0000")
    assert (whole["low"], whole["high"]) == ("1.0000", "1.0000")
    assert table["one", "average_precision"]["value"] == "1.0000"
    assert (table["two", "auroc"]["variants"], table["two", "auroc"]["value"]) == ("1", "NA")
    assert "2 labelled alleles have no score" in result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_positives_may_be_those_that_score_higher(tmp_path: Path, scores: Path) -> None:
    labels = write_vcf(tmp_path / "labels.vcf", CLASSES)
    result = evo(
        "eval", "variants", scores, "--labels", labels, "--label", "CLASS", "--positive", "bad,worse", "--higher"
    )
    assert rows(result.stdout)[0]["value"] == "0.0000"


@pytest.mark.parametrize(("name", "comma"), [("labels.csv", ","), ("labels.tsv", "\t"), ("labels.tsv.gz", "\t")])
def test_numbers_of_a_table(tmp_path: Path, scores: Path, name: str, comma: str) -> None:
    labels = write_table(tmp_path / name, FITNESS, comma)
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "known", "--plot", tmp_path / "p.png")
    assert result.returncode == 0, result.stderr
    (row,) = rows(result.stdout)
    # ranks of the deltas 1 3 4 2, of the labels 1 2 4 3: 1 - 6 * (0 + 1 + 0 + 1) / (4 * 15)
    assert (row["metric"], row["variants"], row["value"]) == ("spearman", "4", "0.8000")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "known"], "known is not a number but a class: bad, fine, worse"),
        (["--label", "known", "--positive", "good"], "no allele has known good"),
        (["--label", "other"], "labels.tsv: has no column `other`"),
        (["--label", "known", "--score", "status"], "status of chr1:10 must be a number, not `ok`"),
        (["--label", "known", "--score", "gamma"], "scores.tsv: has no column `gamma`"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, scores: Path, arguments: list[str], message: str) -> None:
    labels = write_table(tmp_path / "labels.tsv", CLASSES, "\t")
    result = evo("eval", "variants", scores, "--labels", labels, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chrom\tpos\tref\talt\tknown\nchr1\tten\tT\tC\tbad\n", "line 2: pos must be a whole number, not 'ten'"),
        ("chrom\tpos\tref\talt\tknown\nchr1\t10\tT\tC\n", "line 2: 4 columns, the header names 5"),
        ("", "has no column `chrom`"),
        ("chrom\tpos\tref\talt\tknown\nchr2\t10\tT\tC\tbad\n", "none of its 1 labelled alleles has a score"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, scores: Path, text: str, message: str) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text(text)
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "known", "--positive", "bad")
    assert (result.returncode, message in result.stderr) == (1, True), result.stderr


def test_a_vcf_without_the_field_or_damaged(tmp_path: Path, scores: Path) -> None:
    labels = write_vcf(tmp_path / "labels.vcf", CLASSES)
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "SCORE")
    assert "INFO has no field `SCORE`" in result.stderr
    assert "its fields: CLASS, GENE" in result.stderr
    labels.write_text("no VCF at all\n")
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "CLASS")
    assert (result.returncode, "cannot be read as VCF" in result.stderr) == (1, True), result.stderr


def test_what_is_left_out_is_counted(tmp_path: Path, scores: Path) -> None:
    labels = tmp_path / "labels.tsv"
    words = {(10, "C"): "1.5", (10, "G"): "NAN", (20, "T"): "n/a", (30, "A"): "null", (40, "A"): "2", (60, "G"): "3"}
    write_table(labels, words, "\t")
    with labels.open("a") as stream:
        stream.write("chr1\t10\tT\tC\t7\n")
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "known")
    assert result.returncode == 0, result.stderr
    (row,) = rows(result.stdout)
    assert row["variants"] == "1"
    for sentence in (
        "2 labelled alleles have no score",
        "3 alleles have no label",
        "1 scored alleles are not among the labels",
        "1 rows repeat an allele, whose first row counts",
    ):
        assert sentence in result.stderr
    write_table(labels, {(10, "C"): "NA"}, "\t")
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "known")
    assert (result.returncode, "none of its 1 alleles has a known" in result.stderr) == (1, True), result.stderr


def test_a_table_of_a_spreadsheet(tmp_path: Path, scores: Path) -> None:
    labels = write_table(tmp_path / "labels.csv", FITNESS, ",")
    labels.write_text(labels.read_text(), encoding="utf-8-sig")
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "known")
    assert (result.returncode, rows(result.stdout)[0]["value"]) == (0, "0.8000"), result.stderr


@pytest.mark.parametrize(("number", "values"), [("A", "{0},{1}"), ("R", "9,{0},{1}")])
def test_fields_with_a_value_an_allele(tmp_path: Path, scores: Path, number: str, values: str) -> None:
    labels = tmp_path / "labels.vcf"
    lines = [
        f"chr1\t10\t.\tT\tC,G\t.\t.\tF={values.format(1.5, 2)}\n",
        f"chr1\t20\t.\tT\tT,A\t.\t.\tF={values.format(4, 8)}\n",
        f"chr1\t30\t.\tT\tC,A\t.\t.\tF={values.format(8, 3)}\n",
    ]
    labels.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n"
        f'##INFO=<ID=F,Number={number},Type=Float,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(lines)
    )
    result = evo("eval", "variants", scores, "--labels", labels, "--label", "F")
    assert result.returncode == 0, result.stderr
    (row,) = rows(result.stdout)
    assert (row["variants"], row["value"]) == ("4", "0.8000")


def test_scores_of_a_vcf_are_found_by_the_name_of_their_column(tmp_path: Path) -> None:
    lines = [f"chr1\t{pos}\t.\tT\tC\t.\t.\tEVO_DELTA={pos}\n" for pos in (1, 2, 3)]
    path = tmp_path / "scores.vcf"
    path.write_text(
        '##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##INFO=<ID=EVO_DELTA,Number=A,Type=Float,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(lines)
    )
    labels = write_table(tmp_path / "labels.tsv", {(1, "C"): "5", (2, "C"): "6", (3, "C"): "7"}, "\t")
    result = evo("eval", "variants", path, "--labels", labels, "--label", "known")
    assert (result.returncode, rows(result.stdout)[0]["value"]) == (0, "1.0000"), result.stderr


def test_a_picture_of_tied_scores_and_of_one_class(tmp_path: Path, scores: Path) -> None:
    """Neither has much to draw, and neither says anything of its own."""
    labels = write_table(tmp_path / "labels.tsv", {(10, "C"): "bad", (10, "G"): "fine", (20, "T"): "bad"}, "\t")
    one = write_table(tmp_path / "one.tsv", {(10, "C"): "bad"}, "\t")
    for known in (labels, one):
        words = ("--labels", known, "--label", "known", "--positive", "bad", "--bootstrap", 0)
        result = evo("eval", "variants", scores, *words, "--plot", tmp_path / "p.png")
        assert (result.returncode, "Warning" in result.stderr) == (0, False), result.stderr


def test_higher_goes_with_classes(scores: Path) -> None:
    result = evo("eval", "variants", scores, "--labels", scores, "--label", "delta", "--higher")
    assert (result.returncode, "goes with --positive" in result.stderr) == (2, True), result.stderr
