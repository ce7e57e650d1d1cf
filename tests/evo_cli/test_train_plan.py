"""`evo train --plan`, and the flags of speed and accounting, as people meet them."""

import json

import pytest
from typer.testing import CliRunner

from evo_cli.main import app
from sh2.checkpoint import save_model
from sh2.config import Lora
from sh2.lora import add_adapters
from sh2.model import StripedHyena2
from sh2.presets import preset
from tests.evo_cli.cli import rows
from tests.sh2.models import TINY


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*options):
    return CliRunner().invoke(app, ["train", *map(str, options)])


def planned(*options):
    result = train("--plan", "-o", "run", *options)
    return result, {row["quantity"]: row["value"] for row in rows(result.stdout)} if result.stdout else {}


def test_a_run_is_planned_for_a_device_that_is_not_here_and_nothing_is_started(tmp_path):
    big = "--preset", "1b", "--length", 524_288, "--batch-size", 1, "--device", "h100"
    result, nested = planned(*big, "--recompute", "nested")
    assert result.exit_code == 0, result.stderr
    assert nested["fits"] == "yes"
    assert float(nested["total"]) == pytest.approx(
        sum(float(nested[part]) for part in ("weights", "optimizer", "activations", "runtime")), abs=0.01
    )
    assert "the model: 1,108.0M parameters, in bf16, on H100 80GB HBM3" in result.stderr

    result, full = planned(*big, "--recompute", "full")
    assert result.exit_code == 1
    assert "error: train of 524,288 tokens, 1 at once, takes" in result.stderr
    assert int(full["longest"]) < 524_288 < int(nested["longest"])
    assert not list(tmp_path.iterdir())


def test_passes_of_an_update_take_time_and_no_memory_but_gradients_first():
    common = "--preset", "1b", "--length", 8192, "--batch-size", 1, "--device", "h100"
    (_, one), (_, four) = (planned(*common, "--accumulation", count) for count in (1, 4))
    assert float(four["arithmetic"]) == pytest.approx(4 * float(one["arithmetic"]), rel=1e-3)
    assert float(four["activations"]) - float(one["activations"]) == pytest.approx(float(one["weights"]), rel=0.01)
    # the optimizer's part is the same
    assert 3 < float(four["time"]) / float(one["time"]) < 4
    assert float(four["speed"]) > float(one["speed"])


def test_a_run_is_planned_here_from_its_configuration_file(tmp_path):
    (tmp_path / "run.toml").write_text('[model]\npreset = "debug"\n[train]\nsteps = 7\nlength = 64\nbatch_size = 2\n')
    result, plan = planned("--config", "run.toml", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert float(plan["time"]) > 0
    assert "the model: 0.9M parameters, in fp32, on cpu" in result.stderr


def test_bad_plans_are_refused_as_runs_are():
    result, _ = planned("--preset", "1b", "--device", "h300")
    assert result.exit_code == 1
    assert "h300" in result.stderr
    result, _ = planned("--device", "h100")
    assert "error: no model is given" in result.stderr


@pytest.mark.parametrize("words", [("--parallel", "dp=8"), ("--freeze", "mixers")])
def test_what_a_plan_does_not_count_is_refused(words):
    save_model(StripedHyena2(TINY), "tiny")
    result, _ = planned("--from", "tiny", "--device", "h100", *words)
    assert result.exit_code == 1
    message = f"counts one process that trains every weight, or adapters, not {words[0]}"
    assert message in " ".join(result.stderr.split())


def test_adapters_take_the_memory_of_the_weights_and_little_more():
    save_model(model := StripedHyena2(preset("nano")), "nano")
    common = "--from", "nano", "--device", "h100", "--length", 512
    (_, whole), (result, adapted) = planned(*common), planned(*common, "--lora-rank", 2)
    add_adapters(model, Lora(rank=2, alpha=16), seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"trained: {trained:,} parameters of adapters" in result.stderr
    assert float(adapted["optimizer"]) < float(whole["optimizer"]) / 2
    assert float(adapted["activations"]) < float(whole["activations"])
    assert float(adapted["time"]) < float(whole["time"])
    assert float(adapted["arithmetic"]) == pytest.approx(2 / 3 * float(whole["arithmetic"]), rel=1e-3)


def test_a_run_reports_what_it_is_asked_to(tmp_path):
    (tmp_path / "bases.fa").write_text(">one\n" + "ACGGT" * 400 + "\n")
    (tmp_path / "run.toml").write_text(
        '[model]\nwidth = 32\nlayout = "SML*"\nnum_heads = 2\nmlp_width = 48\nse_groups = 2\nmr_groups = 2\n'
        "[train]\nsteps = 4\nlength = 32\nbatch_size = 1\nlog_every = 2\nthreads = 1\naccumulation = 2\n"
    )
    asked = "--recompute", "nested", "--peak-tflops", 0.001, "--filter-statistics", 2, "--profile", 3
    result = train("bases.fa", "--config", "run.toml", "-o", "run", "--device", "cpu", *asked)
    assert result.exit_code == 0, result.stderr
    speeds = [json.loads(line) for line in (tmp_path / "run" / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in speeds] == [2, 4]
    assert speeds[0]["mfu"] == pytest.approx(speeds[0]["tflops"] / 0.001)
    assert f"MFU {speeds[1]['mfu']:.0%}" in " ".join(result.stderr.split())
    assert "the trace of step 3 is run/profile_step_3.json.gz" in " ".join(result.stderr.split())
    assert (tmp_path / "run" / "profile_step_3.json.gz").exists()
    assert len((tmp_path / "run" / "filters.jsonl").read_text().splitlines()) == 2

    refused = train("bases.fa", "--config", "run.toml", "-o", "other", "--device", "cpu", "--fp8-linears")
    assert refused.exit_code == 1
    assert "error: FP8 linears cannot run here: the device `cpu` has no FP8 products" in refused.stderr
    assert "hint: train without `--fp8-linears`" in refused.stderr
