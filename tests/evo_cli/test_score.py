"""`evo score` as a user runs it, against scores taken through other roads."""

from pathlib import Path

import pytest

import sh2
from data.sequence import reverse_complement
from sh2.reading.perplexity import sliding_log_probs
from tests.evo_cli.cli import evo, rows

GENOME = ("ACGTTGCATTAGCCGATACCGGATTTACAGGCATAGC" * 9)[:300]
VARIANTS = [
    # pos, id, ref, alt
    (150, "snv", GENOME[149], "A" if GENOME[149] != "A" else "C"),
    (1, "first_base", GENOME[0], "T"),
    (300, "last_base", GENOME[299], "A" if GENOME[299] != "A" else "C"),
    (120, "insertion", GENOME[119], GENOME[119] + "GG"),
    (170, "deletion", GENOME[169:173], GENOME[169]),
    (80, "mnv", GENOME[79:82], "GTA" if GENOME[79:82] != "GTA" else "CAT"),
]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    soft_masked = GENOME[:100] + GENOME[100:160].lower() + GENOME[160:]
    path.write_text(">chr1 a made-up contig\n" + soft_masked + "\n")
    return path


def write_vcf(path: Path, lines: list[str]) -> Path:
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path.write_text(header + "".join(f"{line}\t.\t.\t.\n" for line in lines))
    return path


def test_a_row_a_record_with_the_scores_of_the_library(tmp_path: Path, model_folder: Path) -> None:
    fasta = tmp_path / "seqs.fa"
    fasta.write_text(">one first\nACGTACGTAA\nGGT\n>empty\n>two\nacgtnnuu\n>single\nG\n")
    result = evo("score", fasta, "--model", model_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == (
        "record\tlength\tlog_likelihood\tmean_log_likelihood\tbits_per_base\tperplexity"
    )
    table = rows(result.stdout)
    assert [(row["record"], row["length"]) for row in table] == [
        ("one", "13"),
        ("empty", "0"),
        ("two", "8"),
        ("single", "1"),
    ]
    want = sh2.score(sh2.load(model_folder), ["ACGTACGTAAGGT", "ACGTNNTT"])
    for row, score in zip((table[0], table[2]), want, strict=True):
        assert float(row["log_likelihood"]) == pytest.approx(score.log_likelihood, abs=1e-4)
        assert float(row["mean_log_likelihood"]) == pytest.approx(score.mean_log_likelihood, abs=1e-5)
        assert float(row["bits_per_base"]) == pytest.approx(score.bits_per_base, abs=1e-5)
    for row in (table[1], table[3]):
        assert row["log_likelihood"] == row["mean_log_likelihood"] == row["bits_per_base"] == "NA"
    assert "1 records hold lower-case" in result.stderr


def test_case_is_kept_on_request_and_a_document_can_be_started(tmp_path: Path, model_folder: Path) -> None:
    fasta = tmp_path / "seqs.fa"
    fasta.write_text(">a\nacgtacgt\n")
    model = sh2.load(model_folder)
    for flag, tokens, eod in (("--keep-case", "acgtacgt", False), ("--prepend-eod", "ACGTACGT", True)):
        result = evo("score", fasta, "--model", model_folder, flag)
        (want,) = sh2.score(model, [tokens], prepend_eod=eod)
        assert float(rows(result.stdout)[0]["log_likelihood"]) == pytest.approx(want.log_likelihood, abs=1e-4)


def test_a_bounded_context_reads_long_records_in_windows(tmp_path: Path, model_folder: Path) -> None:
    fasta = tmp_path / "seqs.fa"
    fasta.write_text(f">long\n{GENOME}\n>short\n{GENOME[:40]}\n>empty\n")
    model = sh2.load(model_folder)
    for flags, eod in (([], False), (["--prepend-eod"], True)):
        result = evo("score", fasta, "--model", model_folder, "--context", 64, *flags)
        table = rows(result.stdout)
        long = sliding_log_probs(model, GENOME, context=64, stride=32, prepend_eod=eod).sum()
        (short,) = sh2.score(model, [GENOME[:40]], prepend_eod=eod)
        assert [row["length"] for row in table] == ["300", "40", "0"]
        assert float(table[0]["log_likelihood"]) == pytest.approx(long, abs=1e-3)
        assert float(table[1]["log_likelihood"]) == pytest.approx(short.log_likelihood, abs=1e-3)


def test_a_genome_beyond_the_training_length_is_remarked_on(tmp_path: Path, model_folder: Path) -> None:
    fasta = tmp_path / "seqs.fa"
    fasta.write_text(f">long\n{GENOME * 30}\n>short\nACGT\n")
    remark = "`long` has 9,000 bp, more than the 8,192 of the model's training: --context 8192 reads it in windows"
    assert remark in evo("score", fasta, "--model", model_folder).stderr
    assert "more than" not in evo("score", fasta, "--model", model_folder, "--context", 8192).stderr


def test_per_base_rows_sum_to_the_record_and_files_are_whole(tmp_path: Path, model_folder: Path) -> None:
    fasta, out, bases = tmp_path / "seqs.fa", tmp_path / "out.tsv", tmp_path / "bases.tsv"
    fasta.write_text(">a\nACGTACGTAAGGT\n>b\nTTGCA\n")
    result = evo("score", fasta, "--model", model_folder, "-o", out, "--per-base", bases)
    assert (result.returncode, result.stdout) == (0, "")
    per_base = rows(bases.read_text())
    assert [row["base"] for row in per_base] == list("CGTACGTAAGGT" + "TGCA")
    assert [row["position"] for row in per_base[:2]] == ["2", "3"]
    for row in rows(out.read_text()):
        total = sum(float(base["log_prob"]) for base in per_base if base["record"] == row["record"])
        assert total == pytest.approx(float(row["log_likelihood"]), abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bases.tsv", "out.tsv", "out.tsv.meta.json", "seqs.fa"]


def test_a_file_that_is_not_dna_leaves_no_output_behind(tmp_path: Path, model_folder: Path) -> None:
    fasta, out = tmp_path / "seqs.fa", tmp_path / "out.tsv"
    fasta.write_text(">a\nACGT\n>b\nACGT\nAC!T\n")
    result = evo("score", fasta, "--model", model_folder, "-o", out)
    assert result.returncode == 1
    assert "seqs.fa" in result.stderr
    assert "line 5" in result.stderr
    assert "'!'" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seqs.fa"]


@pytest.mark.parametrize("window", [8192, 64])
@pytest.mark.parametrize("strand", ["both", "forward"])
def test_deltas_are_those_of_haplotypes_scored_as_plain_sequences(
    tmp_path: Path, model_folder: Path, reference: Path, window: int, strand: str
) -> None:
    vcf = write_vcf(tmp_path / "v.vcf", [f"chr1\t{pos}\t{name}\t{ref}\t{alt}" for pos, name, ref, alt in VARIANTS])
    result = evo("score", vcf, "-r", reference, "-m", model_folder, "--window", window, "--strand", strand)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith(
        "chrom\tpos\tid\tref\talt\tstatus\tdelta\tdelta_fwd\tdelta_rev\tref_ll\talt_ll"
    )
    model = sh2.load(model_folder)
    for row, (pos, name, ref, alt) in zip(rows(result.stdout), VARIANTS, strict=True):
        assert (row["chrom"], row["pos"], row["id"], row["status"]) == ("chr1", str(pos), name, "ok")
        haplotype = GENOME[: pos - 1] + alt + GENOME[pos - 1 + len(ref) :]
        start, length = int(row["window_start"]), int(row["window_length"])
        assert length == min(window, min(len(GENOME), len(haplotype)))
        pair = GENOME[start : start + length].encode(), haplotype[start : start + length].encode()
        assert len(pair[0]) == len(pair[1])
        scores = sh2.score(model, [*pair, *map(reverse_complement, pair)])
        ref_fwd, alt_fwd, ref_rev, alt_rev = (score.log_likelihood for score in scores)
        assert float(row["delta_fwd"]) == pytest.approx(alt_fwd - ref_fwd, abs=2e-4)
        if strand == "both":
            assert float(row["delta_rev"]) == pytest.approx(alt_rev - ref_rev, abs=2e-4)
            assert float(row["delta"]) == pytest.approx((alt_fwd - ref_fwd + alt_rev - ref_rev) / 2, abs=2e-4)
            assert float(row["ref_ll"]) == pytest.approx((ref_fwd + ref_rev) / 2, abs=2e-4)
        else:
            assert row["delta_rev"] == "NA"
            assert float(row["delta"]) == pytest.approx(alt_fwd - ref_fwd, abs=2e-4)


def test_what_cannot_be_scored_keeps_its_row_and_says_why(tmp_path: Path, model_folder: Path, reference: Path) -> None:
    base = GENOME[99]
    wrong = "A" if base != "A" else "C"
    lines = [
        f"chr2\t5\ta\t{base}\tG",
        f"chr1\t999\tb\t{base}\tG",
        f"chr1\t100\tc\t{base}\t.",
        f"chr1\t100\td\t{base}\t*",
        f"chr1\t100\te\t{base}\t<DEL>",
        f"chr1\t100\tf\t{base}\t{base}[chr1:200[",
        f"chr1\t100\tg\t{wrong}\tG",
        f"chr1\t100\th\t{base}\tN",
        f"chr1\t100\ti\t{base}\t{base},{wrong}",
    ]
    result = evo("score", write_vcf(tmp_path / "v.vcf", lines), "-r", reference, "-m", model_folder)
    assert result.returncode == 0, result.stderr
    assert [(row["id"], row["status"]) for row in rows(result.stdout)] == [
        ("a", "missing_contig"),
        ("b", "out_of_range"),
        ("c", "no_alt"),
        ("d", "star"),
        ("e", "symbolic"),
        ("f", "breakend"),
        ("g", "ref_mismatch"),
        ("h", "non_ACGT"),
        ("i", "ref_eq_alt"),
        ("i", "ok"),
    ]
    assert all(row["delta"] == "NA" for row in rows(result.stdout)[:-1])
    assert "10 alleles: " in result.stderr
    assert "1 ok" in result.stderr


def test_bases_without_changes_are_counted(tmp_path: Path, model_folder: Path) -> None:
    reference = tmp_path / "genome.fa"
    reference.write_text(">chr1\nACGNNRTTGCA\n")
    result = evo("score", "--saturate", "--regions", "chr1:3-7", "-r", reference, "-m", model_folder)
    assert result.returncode == 0, result.stderr
    assert [(row["pos"], row["alt"]) for row in rows(result.stdout)] == [
        *(("3", alt) for alt in "ACT"),
        *(("7", alt) for alt in "ACG"),
    ]
    assert "3 bases of the regions are not A, C, G or T, and have no changes" in result.stderr
