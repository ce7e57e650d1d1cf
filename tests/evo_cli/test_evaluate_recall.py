"""`evo eval recall` as a user runs it, against the library."""

from pathlib import Path

import numpy as np
import pytest

import sh2
from sh2.reading.recall import Needle, recall
from tests.evo_cli.cli import evo, rows


def test_a_row_a_length_and_depth_with_a_heat_map(tmp_path: Path, model_folder: Path) -> None:
    hay, picture = tmp_path / "hay.fa", tmp_path / "recall.png"
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), 300))
    hay.write_text(f">a\n{bases[:200].lower()}\n>b\n{bases[200:]}\n")
    result = evo(
        *(
            "eval",
            "recall",
            "--model",
            model_folder,
            "--lengths",
            "40,80,40",
            "--depths",
            3,
            "--needle",
            20,
            "--cue",
            5,
        ),
        *("--trials", 2, "--seed", 3, "--haystack", hay, "--plot", picture),
    )
    assert result.returncode == 0, result.stderr
    want = recall(
        sh2.load(model_folder),
        lengths=[40, 80],
        depths=[0, 0.5, 1],
        needle=Needle(length=20, cue=5, trials=2, seed=3),
        haystack=np.frombuffer(bases.encode(), np.uint8).astype(np.int64),
    )
    for row, one in zip(rows(result.stdout), want, strict=True):
        assert (row["length"], row["depth"]) == (str(one.length), f"{one.depth:g}")
        for name in ("accuracy", "log_prob", "log_prob_without"):
            assert float(row[name]) == pytest.approx(getattr(one, name), abs=2e-4)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--lengths", "10,x"], 2, "must be whole numbers with commas between, not `10,x`"),
        (["--lengths", "100"], 2, "must be at least 132, the needle and its cue, not 100"),
        (["--cue", "100"], 2, "must be at most 99, fewer than the needle, not 100"),
    ],
)
def test_what_cannot_be_asked(model_folder: Path, words: list[str], code: int, message: str) -> None:
    result = evo("eval", "recall", "--model", model_folder, *words)
    assert result.returncode == code
    assert message in " ".join(result.stderr.split()).replace("│ ", "")
