"""`evo train` as people meet it: what it says, what it refuses, and where it writes."""

import json
import random
import re
import sys
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from data.prepare import PrepareOptions, prepare
from evo_cli.main import app
from sh2.train.config import TrainConfig

MODEL = """
[model]
width = 32
layout = "SML*"
num_heads = 2
mlp_width = 48
se_groups = 2
mr_groups = 2
mr_taps = 16
num_modes = 4
"""


@pytest.fixture
def fasta(tmp_path):
    rng = random.Random(0)
    records = [f">r{number}\n{''.join(rng.choices('ACGTacgtN', k=400))}\n" for number in range(8)]
    (tmp_path / "bases.fa").write_text("".join(records))
    return tmp_path / "bases.fa"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.toml").write_text(MODEL)
    return tmp_path / "model.toml"


@pytest.fixture
def evo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["train", *map(str, words)])


@pytest.fixture
def small(model):
    flags = {"steps": 4, "length": 32, "batch-size": 2, "valid-every": 2, "log-every": 2, "threads": 1}
    return ["--config", model, *(word for name, value in flags.items() for word in (f"--{name}", value))]


def test_a_run_from_fasta_leaves_everything_in_its_folder(evo, fasta, small, tmp_path):
    result = evo(fasta, *small, "-o", "run")

    assert (result.exit_code, result.stdout) == (0, "run/model\n"), result.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")) == [
        *("best", "checkpoints", "config.toml", "data.h5", "loss.png"),
        *("metrics.jsonl", "model", "run.json", "speed.jsonl"),
    ]
    lines = result.stderr.splitlines()
    assert any(re.fullmatch(r"data: run/data\.h5, \d+ windows of 32 bp an epoch, \d+ for validation", x) for x in lines)
    assert any(x.startswith("model: 0.1M parameters, layout SML*, fp32 on cpu, 1 threads; 64 tokens") for x in lines)
    assert any(
        re.match(r"step 4/4 \(100%\), loss \d\.\d{4}, bits/base [\d.]+, valid [\d.]+, tokens/s", x) for x in lines
    )
    assert lines[-1] == "the model is run/model, the curve run/loss.png"


def test_the_saved_configuration_repeats_the_run(evo, fasta, small, tmp_path):
    evo(fasta, *small, "-o", "run")

    assert evo("--config", "run/config.toml", "-o", "again").exit_code == 0
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()


def test_a_token_store_is_used_where_it_lies(evo, fasta, small, tmp_path):
    evo(fasta, *small, "-o", "run")

    assert evo("run/data.h5", *small, "-o", "again").exit_code == 0
    assert not (tmp_path / "again" / "data.h5").exists()
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()


def error_of(result):
    """The exit code, the error and its hint, as one line each."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    return result.exit_code, *lines


def test_a_folder_with_a_run_is_not_overwritten(evo, fasta, small):
    evo(fasta, *small, "-o", "run")

    assert error_of(evo(fasta, *small, "-o", "run")) == (
        1,
        "error: run already holds a run",
        "hint: go on with it by `--resume`, or give another folder with `-o`",
    )


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--lr", "0.5"], "error: cannot resume with train field `lr` changed from 0.001 to 0.5"),
        (["--steps", "9"], "error: cannot resume with train field `steps` changed from 4 to 9"),
        (["--preset", "debug"], "error: cannot resume with model field `width` changed from 32 to 128"),
        (["--config", "data.toml"], "error: cannot resume with data field `valid` changed from 0.05 to 0.5"),
    ],
)
def test_a_run_is_resumed_as_what_it_was(evo, fasta, small, tmp_path, flags, error):
    (tmp_path / "data.toml").write_text("[data]\nvalid = 0.5\n")
    evo(fasta, *small, "-o", "run")
    before = (tmp_path / "run" / "config.toml").read_bytes(), (tmp_path / "run" / "data.h5").read_bytes()

    assert error_of(evo("--resume", *flags, "-o", "run"))[:2] == (1, error)
    assert ((tmp_path / "run" / "config.toml").read_bytes(), (tmp_path / "run" / "data.h5").read_bytes()) == before


def test_a_resumed_run_takes_what_it_was_told_first_and_may_log_otherwise(evo, fasta, small, tmp_path):
    evo(fasta, *small, "-o", "run")
    fasta.unlink()

    result = evo("--resume", "--keep-last", 5, "-o", "run")

    assert result.exit_code == 0, result.stderr
    assert "resuming after step 4" in result.stderr
    assert [
        session["from_step"] for session in json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    ] == [*(0, 4)]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["bases.fa", "--preset", "nanno", "--steps", 1], "unknown preset `nanno`", "did you mean `nano`?"),
        (["bases.fa", "--steps", 1], "no model is given", "give `--preset nano`"),
        (["bases.fa", "--preset", "nano"], "train field `steps` is missing", "give `--steps`"),
        (["--preset", "nano", "--steps", 1], "no input is given", "give FASTA or GenBank files"),
        (["bases.fa", "--preset", "nano", "--steps", 1, "--length", 1], "`length` must be at least 2, not 1", None),
        (["bases.fa", "--preset", "nano", "--steps", 1, "--precision", "fp8"], "must be `bf16` or `fp32`", None),
        (["bases.fa", "--preset", "nano", "--steps", 1, "--device", "tpu9"], "unknown device `tpu9`", None),
        (
            ["bases.fa", "--preset", "debug", "--steps", 1, "--device", "cpu", "--backend", "cuda"],
            "unknown backend `cuda`",
            "use auto, triton, reference",
        ),
        (
            ["bases.fa", "--preset", "debug", "--steps", 1, "--compile", "--reset-documents"],
            "train fields `compile` and `reset_documents` cannot both be true",
            "what is compiled has one length",
        ),
        (["--resume"], "run holds no run to go on with", "check the folder's name"),
        (
            ["bases.fa", "--preset", "evo2_40b", "--steps", 1],
            "training this model takes 612.7 GiB before activations; cpu has",
            "take a smaller `--preset`",
        ),
        (
            ["bases.fa", "--preset", "25m", "--steps", 1, "--batch-size", 64, "--length", 1_000_000],
            "a forward pass over 64 windows of 1,000,000 bp takes about ",
            "lower `--batch-size`",
        ),
        (["nothing.fa", "--preset", "nano", "--steps", 1], "nothing.fa", None),
        (["bases.fa", "--preset", "nano", "--steps", 1, "--config", "no.toml"], "no.toml: no such file", None),
    ],
)
def test_a_mistake_is_one_line_and_a_way_out(evo, fasta, words, error, hint):
    result = evo(*words, "-o", "run")

    code, message, *hints = error_of(result)
    assert code == 1
    assert error in message
    assert hint is None or hints[0].startswith(f"hint: {hint}")
    assert result.stdout == ""


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(evo, fasta, small, tmp_path):
    (tmp_path / "file").write_text("")

    code, message, hint = error_of(evo(fasta, *small, "-o", "file/run"))

    assert (code, message) == (1, "error: cannot write to the run folder file/run: Not a directory")
    assert hint == "hint: give another folder with `-o`"
    assert "preparing" not in message


def test_without_held_out_sequence_it_says_so_and_trains(evo, tmp_path, small):
    (tmp_path / "one.fa").write_text(">one\n" + "ACGT" * 50 + "\n")
    (tmp_path / "data.toml").write_text(MODEL + "[data]\nvalid = 0.0\n")

    result = evo("one.fa", *small, "--config", "data.toml", "-o", "run")

    assert result.exit_code == 0, result.stderr
    assert "warning: no record is held out for validation: training without it" in result.stderr
    assert "valid_loss" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_windows_longer_than_the_data_are_pointed_out(evo, tmp_path, small):
    (tmp_path / "short.fa").write_text(">a\nACGTACGTAC\n")

    result = evo("short.fa", *small, "--valid-windows", 0, "-o", "run")

    assert result.exit_code == 0, result.stderr
    assert "bp are longer than the 9 bases to train on: each repeats them" in result.stderr


def test_a_damaged_description_costs_a_warning_only(evo, fasta, small, tmp_path):
    assert evo("bases.fa", *small, "-o", "run").exit_code == 0
    (tmp_path / "run" / "run.json").write_text("{")

    result = evo("--resume", "-o", "run")

    assert result.exit_code == 0, result.stderr
    assert "run/run.json is damaged: what it said of earlier sessions is lost" in result.stderr
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]) == 1


def test_a_file_called_dash_is_not_standard_input(evo, fasta, small, tmp_path):
    prepare([fasta], tmp_path / "-", PrepareOptions())

    code, message, *_ = error_of(evo("-", *small, "-o", "run"))

    assert code == 1
    assert "standard input: no record: the file is empty" in message


def test_tensorboard_events_are_written(evo, fasta, small, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = evo(fasta, *small, "--tensorboard", "-o", "run")

    assert result.exit_code == 0, result.stderr
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("train/valid_bits_per_base")] == [2, 4]


def test_tensorboard_that_is_not_installed_is_said_first(evo, fasta, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    assert error_of(evo(fasta, *small, "--tensorboard", "-o", "run")) == (
        1,
        "error: writing TensorBoard events needs the package `tensorboard`",
        "hint: pip install tensorboard, or leave out `--tensorboard`",
    )
    assert not (tmp_path / "run").exists()


def test_every_field_has_a_flag_with_its_default_in_the_help(evo):
    text = re.sub(r"\s+", " ", evo("--help").stdout)

    for field in fields(TrainConfig):
        flag = f"--{field.name.replace('_', '-')}"
        assert f" {flag}" in text
        if field.name not in ("steps", "precision", "device", "threads"):
            default = (
                {True: "yes", False: "no"}.get(field.default, field.default) if field.type is bool else field.default
            )
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert re.search(rf"{flag}[^\[]*\[{re.escape(shown)}\]", text), flag


def test_one_process_is_not_taken_for_many(evo, fasta, small):
    result = evo(fasta, *small, "--parallel", "tp=2", "-o", "run")

    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()[-2:]
    assert error == "error: parallel `tp=2` needs a multiple of 2 processes; there is 1"
    assert hint.startswith("hint: start as many with `torchrun --nproc-per-node N -m evo_cli train ...` or srun")
