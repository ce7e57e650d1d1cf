"""`--precision` as a user meets it: what is said, what is refused, and which outputs are marked."""

from dataclasses import replace
from pathlib import Path

import pytest

import sh2
from sh2.checkpoint import save_model
from sh2.model import StripedHyena2
from tests.evo_cli.cli import evo, rows
from tests.sh2.models import TINY


@pytest.fixture(scope="module")
def fp8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose configuration says that it was trained in FP8."""
    folder = tmp_path_factory.mktemp("models") / "fp8"
    save_model(StripedHyena2(replace(TINY, fp8_input_projections=True)), folder)
    return folder


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "seqs.fa"
    path.write_text(">a\nACGTACGTAAGGT\n>empty\n>b\nTTGCA\n")
    return path


def precision_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "precision" in line]


def test_auto_takes_fp8_where_the_model_was_trained_so_and_says_why(fp8_folder: Path, fasta: Path) -> None:
    result = evo("score", fasta, "-m", fp8_folder, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert precision_lines(result.stderr) == [
        "precision: fp8-emulated (the model was trained with FP8 input projections and the device `cpu` has no FP8"
        " products)"
    ]
    table = rows(result.stdout)
    assert "precision" not in table[0]
    want, _ = sh2.score(sh2.load(fp8_folder), ["ACGTACGTAAGGT", "TTGCA"])
    assert float(table[0]["log_likelihood"]) == pytest.approx(want.log_likelihood, abs=1e-4)
    explicit = evo("score", fasta, "-m", fp8_folder, "--device", "cpu", "--precision", "fp8-emulated")
    assert explicit.stdout == result.stdout
    assert precision_lines(explicit.stderr) == [
        "precision: fp8-emulated (as asked for; the model was trained with FP8 input projections)"
    ]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "precision: fp32 (the model was not trained with FP8 input projections; a CPU runs in fp32)"),
        (
            ("--precision", "bf16"),
            "precision: bf16 (as asked for; the model was not trained with FP8 input projections)",
        ),
    ],
)
def test_a_model_that_was_not_trained_in_fp8_runs_plainly_and_unmarked(
    model_folder: Path, fasta: Path, flags: tuple[str, ...], line: str
) -> None:
    result = evo("score", fasta, "-m", model_folder, "--device", "cpu", *flags)
    assert precision_lines(result.stderr) == [line]
    assert "precision" not in result.stdout


def test_fp8_that_has_nothing_to_round_says_so(tmp_path: Path, fasta: Path) -> None:
    save_model(StripedHyena2(replace(TINY, layout="**")), tmp_path / "transformer")
    result = evo("score", fasta, "-m", tmp_path / "transformer", "--device", "cpu", "--precision", "fp8-emulated")
    assert precision_lines(result.stderr) == [
        "precision: fp32 (fp8-emulated is for the input projections of hyena layers, and it has none)"
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_plain_numbers_of_a_model_trained_in_fp8_are_marked_everywhere(
    tmp_path: Path, fp8_folder: Path, fasta: Path, precision: str
) -> None:
    mark, common = f"{precision}_not_fp8", ("-m", fp8_folder, "--device", "cpu", "--precision", precision)
    bases = tmp_path / "bases.tsv"
    result = evo("score", fasta, *common, "--per-base", bases)
    assert result.returncode == 0, result.stderr
    assert precision_lines(result.stderr) == [
        f"warning: the model was trained with FP8 input projections: in {precision} its numbers are wrong, and every"
        f" output says precision={mark}; auto takes them"
    ]
    assert result.stdout.splitlines()[0].endswith("\tperplexity\tprecision")
    assert [row["precision"] for row in rows(result.stdout)] == [mark] * 3
    assert {row["precision"] for row in rows(bases.read_text())} == {mark}

    genome, vcf = tmp_path / "genome.fa", tmp_path / "v.vcf"
    genome.write_text(">chr1\n" + "ACGTTGCATTAGCCGATACC" * 5 + "\n")
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t21\ta\tA\tG\t.\t.\t.\nchr2\t21\tb\tA\tG\t.\t.\t.\n"
    )
    variants = evo("score", vcf, "-r", genome, *common)
    assert [(row["status"], row["precision"]) for row in rows(variants.stdout)] == [
        ("ok", mark),
        ("missing_contig", mark),
    ]

    generated = evo("generate", *common, "-p", "ACGT", "-n", 5, "--samples", 2, "--no-stop-at-eod")
    headers = [line for line in generated.stdout.splitlines() if line.startswith(">")]
    assert len(headers) == 2
    assert all(f" precision={mark} " in header for header in headers)


def test_the_mark_is_on_perplexity_too(tmp_path: Path, fp8_folder: Path) -> None:
    genome, store = tmp_path / "genome.fa", tmp_path / "g.h5"
    genome.write_text(">chr1\n" + "ACGTTGCATTAGCCGATACC" * 200 + "\n")
    assert evo("prepare", genome, "-o", store).returncode == 0
    common = ("eval", "perplexity", store, "-m", fp8_folder, "--split", "train", "--device", "cpu", "--context", 512)
    (marked,) = rows(evo(*common, "--precision", "fp32").stdout)
    (right,) = rows(evo(*common).stdout)
    assert marked["precision"] == "fp32_not_fp8"
    assert "precision" not in right


def test_generation_in_fp8_is_unmarked(fp8_folder: Path) -> None:
    result = evo("generate", "-m", fp8_folder, "--device", "cpu", "-p", "ACGT", "-n", 5)
    assert result.returncode == 0, result.stderr
    assert "precision" not in result.stdout


@pytest.mark.parametrize("command", [("score", "seqs.fa"), ("generate", "-p", "A")])
def test_fp8_on_a_cpu_is_refused_with_the_way_out(fp8_folder: Path, fasta: Path, command: tuple[str, ...]) -> None:
    result = evo(*command, "-m", fp8_folder, "--device", "cpu", "--precision", "fp8", cwd=fasta.parent)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "error: precision fp8 cannot run here: the device `cpu` has no FP8 products",
        "hint: fp8-emulated rounds alike on any device",
    ]


def test_an_unknown_precision_is_a_wrong_command_line(fp8_folder: Path, fasta: Path) -> None:
    result = evo("score", fasta, "-m", fp8_folder, "--precision", "fp4")
    assert result.returncode == 2
    assert "fp8-emulated" in result.stderr


@pytest.mark.parametrize("trained", [False, True])
def test_weights_in_fp8_are_marked_everywhere(
    tmp_path: Path, model_folder: Path, fp8_folder: Path, fasta: Path, trained: bool
) -> None:
    folder, output = fp8_folder if trained else model_folder, tmp_path / "scores.tsv"
    common = ("-m", folder, "--device", "cpu", "--precision", "fp8-weights")
    result = evo("score", fasta, *common, "-o", output, "--per-base", tmp_path / "bases.tsv")
    assert result.returncode == 0, result.stderr
    projections = "; input projections run in fp8-emulated, as they were trained" if trained else ""
    assert precision_lines(result.stderr) == [
        "warning: the weights of linear layers are kept in FP8, rounded to four bits, and every output says"
        f" precision=fp8-weights{projections}"
    ]
    for path in (output, tmp_path / "bases.tsv"):
        assert {row["precision"] for row in rows(path.read_text())} == {"fp8-weights"}
    want, _ = sh2.score(sh2.load(folder, fp8_weights=True), ["ACGTACGTAAGGT", "TTGCA"])
    assert float(rows(output.read_text())[0]["log_likelihood"]) == pytest.approx(want.log_likelihood, abs=1e-4)
    again = evo("score", fasta, "-m", folder, "--device", "cpu", "-o", output, "--per-base", tmp_path / "bases.tsv")
    assert again.returncode == 0, again.stderr
    assert "precision" not in rows(output.read_text())[0]
    written = evo("generate", "-p", "ACGT", "-n", 8, *common)
    assert written.returncode == 0, written.stderr
    assert "precision=fp8-weights" in written.stdout
