"""Options of scoring against scores taken by other roads: conditions, saturation, backgrounds, REF mismatches."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sh2
from data.background import background
from data.errors import DataError
from data.reference import Reference
from data.variants import WindowRule, variant_window
from data.vcf import read_vcf
from evo_cli.scoring import saturation_plot
from evo_cli.scoring.saturation_plot import plot_saturation
from evo_cli.scoring.sequence_table import read_condition
from evo_cli.scoring.variant_table import RefMismatch, read_regions
from tests.evo_cli.cli import evo, rows
from tests.evo_cli.scoring import SCORING, sequences, variants, write_genome, write_vcf
from tests.sh2.models import tiny

SATURATE = {"variants": None, "regions": "chr1:41-60"}


@pytest.fixture
def genome(tmp_path: Path) -> str:
    return write_genome(tmp_path, 120)


def test_perplexity_is_the_exponential_of_the_mean(genome: str, tmp_path: Path) -> None:
    (tmp_path / "s.fa").write_text(f">a\n{genome[:40]}\n")
    sequences(tmp_path / "s.fa", tmp_path / "o.tsv")
    (row,) = rows((tmp_path / "o.tsv").read_text())
    assert float(row["perplexity"]) == pytest.approx(math.exp(-float(row["mean_log_likelihood"])), rel=1e-5)
    assert float(row["perplexity"]) == pytest.approx(2 ** float(row["bits_per_base"]), rel=1e-4)


def test_a_condition_stands_before_every_record(genome: str, tmp_path: Path, model_folder: Path) -> None:
    fasta, before = tmp_path / "s.fa", tmp_path / "before.fa"
    fasta.write_text(f">a\n{genome[40:70]}\n>b\n{genome[70:71]}\n>c\n{genome[71:101]}\n")
    before.write_text(f">before\n{genome[:40].lower()}\n")
    bases = tmp_path / "b.tsv"
    result = evo("score", fasta, "-m", model_folder, "--condition", before, "--per-base", bases)
    assert result.returncode == 0, result.stderr
    texts = (genome[40:70], genome[70:71], genome[71:101])
    wholes = sh2.score(tiny(), [genome[:40] + text for text in texts], per_token=True)
    for row, text, whole in zip(rows(result.stdout), texts, wholes, strict=True):
        assert whole.log_probs is not None
        assert float(row["log_likelihood"]) == pytest.approx(whole.log_probs[-len(text) :].sum(), rel=1e-5)
        assert row["length"] == str(len(text))
    assert [row["position"] for row in rows(bases.read_text())][:3] == ["1", "2", "3"]
    clash = evo("score", fasta, "-m", model_folder, "--condition", before, "--context", 8)
    assert clash.returncode == 2
    assert "would cut the condition off" in clash.stderr


def test_a_condition_is_one_sequence(tmp_path: Path) -> None:
    path = tmp_path / "c.fa"
    for text, message in ((">a\nA\n>b\nC\n", "there are more records than one"), (">a\n", "record `a` is empty")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"{message}; what stands before every record is one sequence"):
            read_condition(path, keep_case=False)


def test_saturation_is_every_change_of_a_region(genome: str, tmp_path: Path) -> None:
    bed, snvs = tmp_path / "r.bed", tmp_path / "v.vcf"
    bed.write_text("chr1\t50\t60\nchr1\t40\t52\n")
    variants(snvs, tmp_path / "o.tsv", request=SATURATE | {"plot": tmp_path / "o.png"})
    variants(snvs, tmp_path / "p.tsv", request=SATURATE | {"regions": str(bed)})
    found = rows((tmp_path / "o.tsv").read_text())
    assert found == rows((tmp_path / "p.tsv").read_text())
    assert [(int(row["pos"]), row["ref"], row["alt"]) for row in found] == [
        (pos, genome[pos - 1], alt) for pos in range(41, 61) for alt in "ACGT" if alt != genome[pos - 1]
    ]
    lines = (f"chr1\t{row['pos']}\t.\t{row['ref']}\t{row['alt']}\n" for row in found)
    snvs.write_text("#CHROM\tPOS\tID\tREF\tALT\n" + "".join(lines))
    variants(snvs, tmp_path / "q.tsv")
    assert (tmp_path / "q.tsv").read_bytes() == (tmp_path / "o.tsv").read_bytes()
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_regions_are_a_bed_file_or_one_region() -> None:
    assert [str(region) for region in read_regions("chr1:1,001-1,002")] == ["chr1:1001-1002"]
    with pytest.raises(DataError, match=r"none\.bed: is no file, and no region"):
        read_regions("none.bed")


def test_a_picture_has_a_strip_for_so_many_bases_and_an_end(
    genome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.tsv"
    header = "chrom\tpos\tref\talt\tdelta\n"
    table.write_text(header + "".join(f"c\t{pos}\tA\tG\t{pos / 100 - 1}\n" for pos in range(1, 251) if pos != 100))
    (stretch,) = saturation_plot._stretches(table)
    assert (stretch.first, stretch.end, stretch.bases[99]) == (1, 251, "")
    deltas = np.stack(stretch.deltas)
    assert np.isnan(deltas[:, [0, 1, 3]]).all()
    np.testing.assert_allclose(np.delete(deltas[:, 2], 99), [pos / 100 - 1 for pos in range(1, 251) if pos != 100])
    assert [len(strip.bases) for strip in saturation_plot._strips([stretch])] == [100, 100, 50]
    plot_saturation(table, tmp_path / "t.png")
    table.write_text(header)
    with pytest.raises(DataError, match="there is nothing to draw"):
        plot_saturation(table, tmp_path / "t.png")
    monkeypatch.setattr(saturation_plot, "MOST_BASES", 19)
    with pytest.raises(DataError, match=r"o\.png: a picture shows at most 19 bp, not 20"):
        variants(tmp_path / "v.vcf", tmp_path / "o.tsv", request=SATURATE | {"plot": tmp_path / "o.png"})


def test_percentile_and_z_are_those_of_the_background_scored_as_variants(tmp_path: Path) -> None:
    vcf = write_vcf(tmp_path / "v.vcf", write_genome(tmp_path, 120), step=9)
    scoring = replace(SCORING, rule=WindowRule(length=32))
    variants(vcf, tmp_path / "o.tsv", request={"background": 8, "scoring": scoring})
    found = rows((tmp_path / "o.tsv").read_text())
    reference = Reference(tmp_path / "genome.fa")
    for row, allele in zip(found, read_vcf(vcf), strict=True):
        if row["status"] != "ok":
            assert (row["background"], row["percentile"], row["z"]) == ("NA", "NA", "NA")
            continue
        drawn = background(reference, allele, variant_window(reference, allele, scoring.rule), 8)
        lines = "".join(f"chr1\t{one.pos}\t.\t{one.ref}\t{one.alt}\n" for one in drawn)
        (tmp_path / "b.vcf").write_text(f"#CHROM\tPOS\tID\tREF\tALT\n{lines}")
        variants(tmp_path / "b.vcf", tmp_path / "b.tsv", request={"scoring": scoring}, overwrite=True)
        others = np.array([float(one["delta"]) for one in rows((tmp_path / "b.tsv").read_text())])
        delta = float(row["delta"])
        assert row["background"] == str(len(others))
        assert float(row["percentile"]) == pytest.approx(100 * (others < delta).mean(), abs=0.01)
        assert float(row["z"]) == pytest.approx((delta - others.mean()) / others.std(ddof=1), rel=1e-3, abs=1e-3)
    about = json.loads((tmp_path / "o.tsv.meta.json").read_text())
    assert about["options"]["background"] == 8


def test_a_ref_that_the_reference_has_not_is_skipped_flagged_or_the_end(genome: str, tmp_path: Path) -> None:
    ref = genome[49]
    wrong, alt = [base for base in "ACGT" if base != ref][:2]
    vcf = tmp_path / "v.vcf"
    vcf.write_text(f"#CHROM\tPOS\tID\tREF\tALT\nchr1\t50\t.\t{wrong}\t{alt}\nchr1\t50\t.\t{ref}\t{alt}\n")
    variants(vcf, tmp_path / "o.tsv")
    assert [row["status"] for row in rows((tmp_path / "o.tsv").read_text())] == ["ref_mismatch", "ok"]
    flagged = {
        "on_mismatch": RefMismatch.FLAG,
        "scoring": replace(SCORING, rule=WindowRule(length=16, ignore_ref=True)),
    }
    variants(vcf, tmp_path / "p.tsv", request=flagged)
    marked, right = rows((tmp_path / "p.tsv").read_text())
    assert (marked["status"], right["status"]) == ("ok_ref_mismatch", "ok")
    assert marked["delta"] == right["delta"]
    with pytest.raises(DataError, match=rf"chr1:50 {wrong}>{alt}: REF is not what .*genome\.fa has there, {ref}"):
        variants(vcf, tmp_path / "q.tsv", request={"on_mismatch": RefMismatch.FAIL})
    assert not list(tmp_path.glob("q.tsv*"))


def test_alleles_that_are_not_written_as_they_might_be_are_noted(tmp_path: Path) -> None:
    (tmp_path / "genome.fa").write_text(f">chr1\n{'ACGTTTTTGA' * 6}\n")
    vcf = tmp_path / "v.vcf"
    vcf.write_text("#CHROM\tPOS\tID\tREF\tALT\nchr1\t13\t.\tGT\tG\nchr1\t16\t.\tTT\tT\nchr1\t13\t.\tGT\t*\n")
    variants(vcf, tmp_path / "o.tsv")
    assert [row["normalised"] for row in rows((tmp_path / "o.tsv").read_text())] == ["yes", "no", "NA"]


def test_stdin_is_scored_and_cannot_be_gone_on_with(
    genome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.fa").write_text(f">a\n{genome[:30]}\n")
    output = tmp_path / "o.tsv"
    for _ in range(2):
        with (tmp_path / "s.fa").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            sequences(Path("-"), output)
        assert "nothing to do" not in capsys.readouterr().err
    assert [row["record"] for row in rows(output.read_text())] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s.fa", "--window", "9"], "--window: is for variants, not for sequences"),
        (["s.fa", "--saturate"], "belong together: give both or neither"),
        (
            ["v.vcf", "-r", "g.fa", "--saturate", "--regions", "c:1-9"],
            "scores all changes of --regions, and takes no v.vcf",
        ),
        (["--saturate", "--regions", "c:1-9"], "c:1-9 holds variants: give the genome they lie on"),
        (["v.vcf", "-r", "g.fa", "--shard", "1/2"], "parts are tables (.tsv, .tsv.gz, .parquet), given with -o"),
        (
            ["v.vcf", "-r", "g.fa", "--shard", "3/2", "-o", "o.tsv"],
            "must be i/n with 1 <= i <= n, such as 3/10, not '3/2'",
        ),
        (["v.vcf", "-r", "g.fa", "--plot", "o.png", "-o", "o.tsv"], "draws a whole --saturate that is written with -o"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = evo("score", "-m", "m", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


def test_parts_are_merged_from_the_command_line(tmp_path: Path) -> None:
    vcf = write_vcf(tmp_path / "v.vcf", write_genome(tmp_path, 120))
    parts = [tmp_path / "1.tsv", tmp_path / "2.tsv"]
    for number, part in enumerate(parts, 1):
        variants(vcf, part, shard=f"{number}/2")
    lacking = evo("merge", parts[0], "-o", tmp_path / "o.tsv")
    assert lacking.returncode == 1
    assert "error: part 2 of 2 missing" in lacking.stderr
    assert "hint: run the command again with --shard 2/2" in lacking.stderr
    assert evo("merge", *parts, "-o", tmp_path / "o.tsv").returncode == 0
    variants(vcf, tmp_path / "p.tsv")
    assert (tmp_path / "o.tsv").read_bytes() == (tmp_path / "p.tsv").read_bytes()
