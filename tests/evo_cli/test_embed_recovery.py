"""`evo embed` killed, out of room and gone on with: the same file in the end."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_cli.embedding import blocks as embedding_blocks
from evo_cli.embedding import run as embedding
from tests.evo_cli.embeddings import content, embed


@pytest.fixture(autouse=True)
def _work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_what_was_killed_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, model_folder: Path, kill: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_blocks, "_BLOCK_BASES", 600)
    letters = np.random.default_rng(0).choice(list("ACGT"), size=(120, 300))
    Path("a.fa").write_text("".join(f">r{number}\n{''.join(row)}\n" for number, row in enumerate(letters)))
    words = ["a.fa", "-m", model_folder, "-l", "all", "--strand", "both", "--dtype", "float16"]
    assert embed(*words, "-o", "whole.h5").exit_code == 0
    folder = tmp_path / "o.h5.partial"
    process = start(*words, "-o", "o.h5")
    while not (folder / "8.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    assert f"error: {folder}: another run is writing it\n" in embed(*words, "-o", "o.h5").stderr
    process.send_signal(kill)
    process.send_signal(signal.SIGCONT)
    stderr = process.communicate(timeout=100)[1]
    assert process.returncode == (-9 if kill is signal.SIGKILL else 130)
    assert (f"what is done is kept in {folder}" in stderr) == (kill is signal.SIGINT)
    assert not Path("o.h5").exists()
    (folder / "999999.npy").write_bytes(b"half a blo")  # of a block that was being written
    there = len(list(folder.glob("[0-9]*.json")))
    assert 8 < there < 60
    result = embed(*words[:-1], "float32", "-o", "o.h5")
    assert f"error: {folder}: was begun by another run: dtype was float16 and is float32\n" in result.stderr
    result = embed(*words, "-o", "o.h5", "--max-tokens", "7")  # which changes no vector
    assert f"going on with {folder}: {there} blocks of records are there\n" in result.stderr
    assert result.exit_code == 0
    found, want = content(Path("o.h5")), content(Path("whole.h5"))
    assert list(found) == list(want) == [f"embeddings/r{number}" for number in range(120)]
    for name, vector in want.items():
        np.testing.assert_allclose(found[name], vector, rtol=2e-3, atol=1e-6)
    assert not folder.exists()


def start(*words: object) -> "subprocess.Popen[str]":
    """Run `evo embed` in a process of its own, in blocks of a few records."""
    code = "import evo_cli.embedding.blocks as b; b._BLOCK_BASES = 600; from evo_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "embed", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_run_that_goes_on_writes_the_bytes_of_one_that_was_never_stopped(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_blocks, "_BLOCK_BASES", 600)
    text = "".join(f">r{number}\n{'ACGTTGCAGG' * (10 + number % 7)}\n" for number in range(40))
    words = ("-", "-m", model_folder, "-l", "0,2", "--strand", "both", "--pool", "per-base")
    assert embed(*words, "-o", "whole.npy", stdin=text).exit_code == 0
    whole, calls = embedding_blocks.embed_block, []

    def fails(*arguments: Any, **options: Any) -> None:
        calls.append(arguments[1].number)
        if len(calls) % 3 == 0:
            raise MemoryError
        whole(*arguments, **options)

    monkeypatch.setattr(embedding, "embed_block", fails)
    codes = []
    while not codes or codes[-1]:
        codes.append(embed(*words, "-o", "o.npy", stdin=text).exit_code)
    assert codes[:-1] == [1] * (len(codes) - 1)
    assert calls == sorted(calls)
    assert sorted({*calls}) == list(range(calls[-1] + 1))
    assert len(calls) == len({*calls}) + len(codes) - 1  # only what failed was done again
    for suffix in (".npy", ".npy.ids.tsv"):
        assert Path(f"o{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()


def test_an_unfinished_output_of_other_records_is_refused_or_replaced(tmp_path: Path, model_folder: Path) -> None:
    words = ("-", "-m", model_folder, "-o", "o.npy")
    assert embed(*words, stdin=">a\nACGT\n").exit_code == 0
    (tmp_path / "o.npy.partial").mkdir()
    (tmp_path / "o.npy.partial" / "note").touch()
    result = embed(*words, stdin=">a\nACGT\n")
    folder = tmp_path / "o.npy.partial"
    assert f"error: {folder}: holds other files than those of an unfinished run\n" in result.stderr
    shutil.rmtree(folder)
    folder.touch()
    result = embed(*words, stdin=">a\nACGT\n")
    assert f"error: {folder}: is a file, where a folder must be\n" in result.stderr
    folder.unlink()
    (tmp_path / "o.npy").unlink()
    (tmp_path / "o.npy").mkdir()  # found only when the output takes its name: what is done stays
    result = embed(*words, stdin=">a\nACGT\n")
    assert "error: o.npy: is a folder, not a file to write\n" in result.stderr


@pytest.mark.parametrize(
    ("suffix", "limit"), [("h5", 3000), ("h5", 12_000), ("h5", 40_000), ("npy", 40_000), ("parquet", 20_000)]
)
def test_a_full_disk_is_one_line_and_what_is_done_is_kept(
    tmp_path: Path, model_folder: Path, suffix: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_blocks, "_BLOCK_BASES", 6000)
    letters = np.random.default_rng(0).choice(list("ACGT"), size=(100, 280))
    Path("a.fa").write_text("".join(f">r{number}\n{''.join(row)}\n" for number, row in enumerate(letters)))
    words = ("a.fa", "-m", model_folder, "-l", "all", "-o", f"o.{suffix}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        result = embed(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert re.match(r"error: cannot write the output: .*file too large", result.stderr.splitlines()[-2])
    assert result.stderr.splitlines()[-1].startswith("hint: make room, ")
    assert not Path(f"o.{suffix}").exists()
    result = embed(*words)
    assert (result.exit_code, Path(f"o.{suffix}").exists()) == (0, True)
    there = "going on with" in result.stderr
    assert there == (limit > 10_000)
