"""`evo eval generation` as a user runs it: samples like the reference, samples unlike it, and nothing to compare."""

from pathlib import Path

import numpy as np
import pytest

from tests.evo_cli.cli import evo, rows

RNG = np.random.default_rng(0)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f">r{number}\n{text}\n" for number, text in enumerate(texts)))
    return path


def dna(length: int, gc: float) -> str:
    return "".join(RNG.choice(list("ACGT"), length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))


def test_samples_of_another_make_are_far_and_those_of_the_same_near(tmp_path: Path) -> None:
    reference = write(tmp_path / "real.fa", [dna(60_000, 0.6), dna(30_000, 0.6)])
    near, far = write(tmp_path / "near.fa", [dna(30_000, 0.6)]), write(tmp_path / "far.fa", [dna(30_000, 0.3).lower()])
    picture = tmp_path / "likeness.png"
    tables = []
    for samples in (near, far):
        result = evo("eval", "generation", samples, "--reference", reference, "--k", 3, "--orf", 5, "--plot", picture)
        assert result.returncode == 0, result.stderr
        tables.append({row["metric"]: row for row in rows(result.stdout)})
    assert picture.read_bytes().startswith(b"\x89PNG")
    like, unlike = tables
    assert list(like) == ["bases", "gc", "1-mers", "2-mers", "3-mers", "orfs_per_kb", "orf_codons", "codons"]
    assert [like["bases"][column] for column in ("samples", "reference", "drawn")] == ["30000", "90000", "30000"]
    assert float(like["gc"]["drawn"]) == pytest.approx(0.6, abs=0.02)
    assert float(unlike["gc"]["samples"]) == pytest.approx(0.3, abs=0.02)
    assert float(unlike["gc"]["distance"]) == 1.0
    # p = 0.7 and 0.4 of A and T: the divergence of two coins
    p, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    m = (p + q) / 2
    want = ((p * np.log2(p / m)).sum() + (q * np.log2(q / m)).sum()) / 2
    assert float(unlike["1-mers"]["distance"]) == pytest.approx(want, abs=0.01)
    for metric in ("1-mers", "3-mers", "codons"):
        assert float(like[metric]["distance"]) < 0.01 < float(unlike[metric]["distance"])
        assert float(like[metric]["distance_drawn"]) == float(unlike[metric]["distance_drawn"]) < 0.01
    assert float(unlike["orf_codons"]["samples"]) < float(like["orf_codons"]["samples"])


def test_too_little_to_compare_says_na(tmp_path: Path) -> None:
    short = write(tmp_path / "short.fa", ["ACGT", ""])
    result = evo("eval", "generation", short, "-r", short, "--plot", tmp_path / "p.png")
    assert result.returncode == 0, result.stderr
    table = {row["metric"]: row for row in rows(result.stdout)}
    assert table["orf_codons"]["samples"] == table["gc"]["distance"] == table["6-mers"]["distance"] == "NA"


def test_nothing_to_compare(tmp_path: Path) -> None:
    good, empty = write(tmp_path / "good.fa", ["ACGT"]), write(tmp_path / "empty.fa", ["NNN", ""])
    for words in ((empty, "-r", good), (good, "-r", empty)):
        result = evo("eval", "generation", *words)
        assert result.returncode == 1
        assert "empty.fa: its records hold no A, C, G or T" in result.stderr


def test_rna_is_read_as_dna(tmp_path: Path) -> None:
    text = dna(6000, 0.5)
    as_dna, as_rna = write(tmp_path / "dna.fa", [text]), write(tmp_path / "rna.fa", [text.replace("T", "U")])
    tables = [evo("eval", "generation", samples, "-r", as_dna).stdout for samples in (as_dna, as_rna)]
    assert tables[0] == tables[1] != ""
