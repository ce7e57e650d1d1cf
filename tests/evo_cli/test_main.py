"""The command line as a whole: help, start-up, errors, exit codes, models, doctor."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.prepare import PrepareOptions, prepare
from evo_cli.checkup import kernels_failure
from sh2.model import StripedHyena2
from sh2.presets import PRESETS
from tests.evo_cli.cli import evo, rows

COMMANDS = ["prepare", "train", "score", "embed", "generate", "convert", "models", "doctor", "eval"]


def test_help_answers_in_less_than_a_third_of_a_second() -> None:
    times, imports = [], []
    for _ in range(5):
        start = time.perf_counter()
        # not forked from one that has torch: that none is imported is what is tested
        result = subprocess.run(
            [sys.executable, "-m", "evo_cli", "--help"], capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - start)
        assert result.returncode == 0
        assert all(command in result.stdout for command in COMMANDS)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import typer.main"], check=True)
        imports.append(time.perf_counter() - start)
    # a machine that is slow, or busy, takes its time for Python and typer alone
    assert min(times) < max(0.3, 3 * min(imports))


@pytest.mark.parametrize("command", [*COMMANDS[:-1], "eval perplexity", "eval markov"])
def test_every_command_has_worked_examples_in_its_help(command: str) -> None:
    result = evo(*command.split(), "--help")
    assert result.returncode == 0
    assert "Examples:" in result.stdout
    assert result.stdout.count(f"evo {command.split()[0]}") >= 2


@pytest.mark.parametrize("module", ["torch", "numpy", "rich"])
def test_importing_sh2_or_asking_for_help_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, sh2, evo_cli.main; sh2.ModelConfig; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["score", "--model", "m"], 2, "is missing: give sequences, or variants with --reference"),
        (["generate", "--model", "m"], 2, "give either --prompt TEXT or --prompts FASTA"),
        (
            ["generate", "--model", "m", "--prompt", "A", "--length", "0"],
            2,
            "Input should be greater than or equal to 1",
        ),
        (["generate", "--model", "m", "--prompt", "A", "--top-p", "2"], 2, "must lie above 0 and up to 1"),
        (["score", "x.vcf.gz", "--model", "m"], 2, "x.vcf.gz holds variants: give the genome they lie on"),
        (["score", "x.fa", "--model", "m", "-r", "y.fa", "--keep-case"], 2, "is for sequences, not for variants"),
        (["score", "missing.fa", "--model", "m"], 1, "error: missing.fa: cannot be read: No such file or directory"),
        (["eval", "markov", "missing.h5"], 1, "error: missing.h5"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = evo(*arguments, cwd=tmp_path)
    assert result.returncode == code
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_device_is_named_with_the_way_out(tmp_path: Path, model_folder: Path) -> None:
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\nACGT\n")
    result = evo("score", fasta, "--model", model_folder, "--device", "cuda:77")
    assert result.returncode == 1
    assert "error: there is no device `cuda:77`: torch sees" in result.stderr
    assert "hint: run `evo doctor`, or use --device cpu" in result.stderr


@pytest.mark.parametrize("command", ["score", "generate", "eval perplexity", "train"])
def test_triton_on_a_cpu_is_refused_with_the_reason(
    tmp_path: Path, model_folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # under it the kernels would run, slowly
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\n" + "ACGTTGCATT" * 300 + "\n")
    words: dict[str, tuple[object, ...]] = {
        "score": (fasta, "--model", model_folder),
        "generate": ("--model", model_folder, "--prompt", "A"),
        "eval perplexity": (tmp_path / "a.h5", "--model", model_folder, "--split", "train"),
        "train": (fasta, "--preset", "debug", "--steps", 1, "-o", tmp_path / "run"),
    }
    if command == "eval perplexity":
        prepare([fasta], tmp_path / "a.h5", PrepareOptions())
    result = evo(*command.split(), *words[command], "--device", "cpu", "--backend", "triton")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-2:] == [
        "error: hyena_fir: the Triton kernels cannot run here: the tensors are on the CPU",
        "hint: the backend `auto` takes plain torch where the kernels cannot run; `evo doctor` shows what is there",
    ]


def test_models_lists_every_preset() -> None:
    result = evo("models", "--layout")
    table = {row["name"]: row for row in rows(result.stdout)}
    assert list(table) == list(PRESETS)
    assert table["evo2_7b"]["parameters"] == "6581722880"
    assert table["evo2_7b"]["context"] == "1048576"
    assert table["evo2_7b"]["source"] == "arcinstitute/evo2_7b"
    assert table["nano"]["layout"] == "SML*SML"


def test_doctor_finds_this_machine_in_order() -> None:
    result = evo("doctor")
    assert result.returncode == 0, result.stdout
    found = {line.split("\t")[1]: line.split("\t")[0] for line in result.stdout.splitlines()}
    assert found["python"] == found["torch"] == found["cpu"] == "ok"
    if not torch.cuda.is_available():
        assert re.search(
            r"note\ttriton\t\S+; its kernels need an NVIDIA GPU: operators run in plain torch", result.stdout
        )
    assert "no problems found" in result.stderr


@pytest.mark.parametrize(
    ("visible", "code", "finding"),
    [
        ("", 0, "note\tgpu\thidden by CUDA_VISIBLE_DEVICES: everything runs on the CPU"),
        ("0", 1, "problem\tgpu\tthe driver is there but torch"),
    ],
)
def test_doctor_tells_a_hidden_gpu_from_one_that_torch_cannot_use(
    tmp_path: Path, visible: str, code: int, finding: str
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    script = "import sys, torch; torch.cuda.is_available = lambda: False; from evo_cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": visible},
    )
    assert result.returncode == code
    assert finding in result.stdout


def test_doctor_says_why_kernels_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert kernels_failure("cpu") is None  # Triton interprets them: tests/conftest.py

    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(StripedHyena2, "forward", no_compiler)
    assert kernels_failure("cpu") == "RuntimeError: Failed to find C compiler."


def test_doctor_finds_the_other_package_called_kernels(tmp_path: Path) -> None:
    metadata = tmp_path / "kernels-0.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9\n")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "evo_cli", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert result.returncode == 1
    assert "problem\tkernels\tthe PyPI package `kernels` 0.9 is installed" in result.stdout
    assert "pip uninstall kernels" in result.stdout


def test_ctrl_c_ends_with_130_and_no_traceback(model_folder: Path) -> None:
    command = [sys.executable, "-m", "evo_cli", "generate", "-m", str(model_folder), "-p", "A", "-n", "9999999"]
    command.append("--no-stop-at-eod")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stderr is not None
    assert "parameters" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
