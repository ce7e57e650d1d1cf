"""`evo eval positions` as a user runs it, against windows that are scored one by one."""

import math
from pathlib import Path

import numpy as np
import pytest

import sh2
from tests.evo_cli.cli import evo, rows


def bits(model: sh2.StripedHyena2, text: str) -> np.ndarray:
    """Bits of every base of a document."""
    (score,) = sh2.score(model, [text.upper()], prepend_eod=True, per_token=True)
    assert score.log_probs is not None
    return score.log_probs / -math.log(2)


def test_rows_are_the_bases_with_so_many_before_them(tmp_path: Path, model_folder: Path) -> None:
    draw = np.random.default_rng(1)
    one, other = ("".join(draw.choice(list("ACGT"), size)) for size in (130, 45))
    one = one[:9] + "N" + one[10:20].lower() + one[20:]
    fasta, picture = tmp_path / "genome.fa", tmp_path / "positions.png"
    fasta.write_text(f">one\n{one}\n>other\n{other}\n")
    result = evo("eval", "positions", fasta, "--model", model_folder, "--context", 40, "--plot", picture)
    assert result.returncode == 0, result.stderr
    found = rows(result.stdout)
    assert [(row["first"], row["last"]) for row in found] == [
        ("0", "0"), ("1", "1"), ("2", "3"), ("4", "7"), ("8", "15"), ("16", "31"), ("32", "39"),
    ]  # fmt: skip
    model = sh2.load(model_folder)
    windows = [one[:40], one[40:80], one[80:120], other[:40]]
    table = np.array([bits(model, window) for window in windows])
    table[0, 9] = np.nan  # the N
    for row in found:
        part = table[:, int(row["first"]) : int(row["last"]) + 1]
        assert int(row["bases"]) == np.isfinite(part).sum()
        assert float(row["bits_per_base"]) == pytest.approx(np.nanmean(part), abs=2e-4)
        if np.isfinite(part).all():
            of_windows = part.mean(axis=1)
            assert float(row["error"]) == pytest.approx(of_windows.std(ddof=1) / 2, abs=2e-4)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_sequence_shorter_than_a_window_is_refused(tmp_path: Path, model_folder: Path) -> None:
    fasta = tmp_path / "genome.fa"
    fasta.write_text(">one\nACGTACGTAC\n")
    result = evo("eval", "positions", fasta, "--model", model_folder, "--context", 11)
    assert result.returncode == 1
    assert "a window is 11 bases, the longest sequence 10" in result.stderr
    assert "hint: lower `--context`" in result.stderr
