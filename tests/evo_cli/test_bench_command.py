"""`evo bench`: the tables, the file, the exit codes and what it says about bad values."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import kernels
from evo_cli.main import app
from sh2.bench import run, timing
from sh2.bench.forward import ForwardBench
from sh2.bench.generate import step_bytes
from sh2.bench.timing import Ceilings
from sh2.model import StripedHyena2
from sh2.planning.accounting import Numbers, forward_flops
from sh2.presets import preset
from tests.evo_cli.cli import rows

SMALL = "--device", "cpu", "--lengths", "40", "--widths", "16", "--channels-per-group", "8"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Ceilings(copy_bytes_per_second=1e10, matmul_flops_per_second=1e12)
    monkeypatch.setattr(run, "measure_ceilings", lambda device, stopwatch: limits)
    monkeypatch.setattr(timing, "_CPU_BUDGET_SECONDS", 0.0)


def bench(*options: object) -> Result:
    return CliRunner().invoke(app, ["bench", "ops", *map(str, options)])


def test_the_table_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    result = bench(*SMALL, "--ops", "li,hyena_se", "--peers", "conv1d,fft,sdpa_cudnn", "-o", path)
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    assert [(row["op"], row["name"]) for row in table] == [
        ("hyena_li", "evo"),
        ("hyena_se", "evo"),
        ("hyena_se", "conv1d"),
        ("hyena_li", "fft"),
        ("hyena_li", "sdpa_cudnn"),
    ]
    assert float(table[0]["forward_ms"]) > 0
    assert (table[0]["length"], table[0]["width"], table[0]["dtype"], table[0]["both_x_ours"]) == (
        "40",
        "16",
        "fp32",
        "1",
    )
    assert (table[4]["forward_ms"], table[4]["note"]) == ("", "needs a CUDA GPU")
    assert "cpu: copies 10 GB/s (read and written), multiplies bf16 matrices at 1.0 TFLOP/s" in result.stderr
    assert "bench rows 5/5 (100%)" in result.stderr

    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["name"] for record in records] == [row["name"] for row in table]
    first = records[0]
    assert first["forward_x_floor"] == pytest.approx(first["forward_ms"] / (4 * 40 * 16 * 4 / 1e10 * 1e3))
    assert first["error"] < 1e-5
    assert not first["failed"]
    assert first["machine"]["torch"] == torch.__version__
    assert first["ceilings"]["copy_bytes_per_second"] == 1e10
    assert first["command"].split()[0] == "evo"
    assert first["backend"] == "auto"
    assert records[4]["forward_ms"] is None


def test_a_wrong_operator_has_no_figure_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = kernels.hyena_fir

    def wrong(*args: object, backend: kernels.Backend) -> tuple[Tensor, kernels.FirState]:
        y, state = right(*args, backend=backend)  # type: ignore[arg-type]
        return (y if backend is kernels.Backend.REFERENCE else y * 1.1), state

    monkeypatch.setattr(kernels, "hyena_fir", wrong)
    result = bench(*SMALL, "--no-peers", "-o", tmp_path / "record.jsonl")
    assert result.exit_code == 1
    se, mr, li = rows(result.stdout)
    for row in (se, mr):
        assert row["forward_ms"] == row["backward_ms"] == ""
        assert row["note"] == "y is off by 1.0e-01 relative to float64, over the 1e-05 allowed"
    assert float(li["forward_ms"]) > 0
    assert "error: 2 of our rows failed the check and have no figure" in result.stderr
    assert "hint: `note` says what was wrong" in result.stderr
    lines = (tmp_path / "record.jsonl").read_text().splitlines()
    assert [json.loads(line)["failed"] for line in lines] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--ops", "se,xl"), "Invalid value for --ops: unknown operator `xl`; known: se, mr, li, joined by commas"),
        (("--lengths", "12,1k"), "--lengths: `12,1k`: give whole numbers above 0, joined by commas, as in 2048,8192"),
        (("--lengths", "0"), "--lengths: `0`: give whole numbers above 0"),
        (("--widths", ""), "--widths: ``: give whole numbers above 0"),
        (
            ("--widths", "24", "--channels-per-group", "16"),
            "a width of 24 is no whole number of groups of 16 channels: change --widths or --channels-per-group",
        ),
        (("--peers", "conv2d"), "--peers: unknown peer `conv2d`; known: all, conv1d, "),
        (("--peers", "conv1d", "--no-peers"), "give either --peers or --no-peers"),
        (("--batch", "0"), "--batch"),
        (("--backend", "cuda"), "--backend"),
    ],
)
def test_a_bad_command_line_exits_with_2(options: tuple[str, ...], says: str) -> None:
    result = bench("--device", "cpu", *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert not result.stdout


def test_an_output_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    result = bench("-o", tmp_path / "absent" / "record.jsonl")
    assert result.exit_code == 1
    assert "cannot be written: there is no folder" in result.stderr


def test_a_preset_reads_and_writes_with_random_weights(tmp_path: Path) -> None:
    path = tmp_path / "forward.jsonl"
    result = CliRunner().invoke(
        app,
        ["bench", "forward", "-m", "debug", "--device", "cpu", "--lengths", "40,80", "--batch", "2", "-o", str(path)],
    )
    assert result.exit_code == 0, result.output
    first, second = rows(result.stdout)
    assert (first["model"], first["precision"], first["length"], first["batch"]) == ("debug", "fp32", "40", "2")
    assert float(second["tokens_per_s"]) == pytest.approx(160 / float(second["seconds"]), rel=1e-2)
    record = json.loads(path.read_text().splitlines()[1])
    flops = 2 * sum(forward_flops(preset("debug"), 80).values()) / record["seconds"]
    assert record["tflops"] == pytest.approx(flops / 1e12)
    assert record["x_matmul"] == pytest.approx(flops / record["ceilings"]["matmul_flops_per_second"])
    assert record["machine"]["torch"] == torch.__version__
    assert "debug: 0.9M random parameters, in fp32, on cpu" in result.stderr


def test_a_stored_model_writes_in_batches(model_folder: Path) -> None:
    options = "--device", "cpu", "--contexts", "5,9", "--batches", "1,3", "--tokens", "8"
    result = CliRunner().invoke(app, ["bench", "generate", "-m", str(model_folder), *options])
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    assert [(row["context"], row["batch"]) for row in table] == [("5", "1"), ("5", "3"), ("9", "1"), ("9", "3")]
    for row in table:
        assert float(row["tokens_per_s"]) == pytest.approx(1e3 * int(row["batch"]) / float(row["ms_a_step"]), rel=1e-2)
        reached = float(row["tokens_per_s"]) / float(row["limit_tokens_per_s"])
        assert float(row["x_limit"]) == pytest.approx(reached, rel=1e-2)


def test_the_limit_of_writing_is_what_a_step_must_move() -> None:
    # 232 and 127 tokens a second at 3.02 TB/s, as reported for the 7B shape and a cache in bf16
    config, numbers = preset("evo2_7b_base"), Numbers(dtype="bf16")
    assert round(3.02e12 / step_bytes(config, numbers, tokens=1024, rows=1)) == pytest.approx(232, abs=4)
    assert round(3.02e12 / step_bytes(config, numbers, tokens=131_072, rows=1)) == pytest.approx(127, abs=2)


def test_a_model_that_is_wrong_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StripedHyena2(preset("debug")).eval()
    bench = ForwardBench(model, batch=1, backend="auto", plain=True)
    whole = model.logits
    monkeypatch.setattr(model, "logits", lambda x: whole(x) * (1.1 if model.blocks[0].mixer.backend == "auto" else 1))
    row = bench.row(30)
    assert row.failed
    assert row.seconds is None
    assert row.note == "the logits are 1.0e-01 from those with plain operators, over the 0.001 allowed"
    monkeypatch.undo()
    assert bench.row(30).error == 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("forward", "--lengths", "8k"), 2, "--lengths: `8k`: give whole numbers above 0, joined by commas"),
        (("generate", "--contexts", "0"), 2, "--contexts: `0`: give whole numbers above 0"),
        (("generate", "--batches", "-1"), 2, "--batches: `-1`: give whole numbers above 0"),
        (("generate", "--tokens", "2"), 2, "--tokens"),
        (("forward", "--model", "evo2_7"), 1, "unknown preset `evo2_7`"),
        (("forward", "--model", "absent/model"), 1, "absent/model does not exist"),
        (("forward", "--precision", "fp8"), 1, "precision fp8 cannot run there: the device has no FP8 products"),
    ],
)
def test_what_cannot_be_timed_is_said(options: tuple[str, ...], code: int, says: str) -> None:
    result = CliRunner().invoke(app, ["bench", *options, "--device", "cpu"])
    assert result.exit_code == code
    assert says in " ".join(result.stderr.split())
    assert not result.stdout
