"""A training run killed again and again ends with the same bytes as one that was left alone."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 40
CONFIG = f"""
[model]
width = 32
layout = "SML*"
num_heads = 2
mlp_width = 64
se_groups = 2
mr_groups = 2
mr_window = {{ alpha_first = 0.001, alpha_last = 0.3 }}

[train]
steps = {STEPS}
batch_size = 2
accumulation = 2
length = 64
valid_every = 10
valid_windows = 5
save_every = 4
log_every = 5
threads = 1
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A configuration file and sequences: bases with a pattern to learn, some of them soft-masked or unknown."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "run.toml").write_text(CONFIG)
    rng = random.Random(0)
    with (folder / "bases.fa").open("w") as file:
        for record in range(12):
            pieces = (rng.choice(["ACGTTGCA", "GGATCC", "tataaa", "NN", rng.choice("ACGT")]) for _ in range(300))
            file.write(f">record{record}\n{''.join(pieces)}\n")
    return folder


def start(inputs: Path, run: Path, *flags: str) -> subprocess.Popen:
    command = ["train", str(inputs / "bases.fa"), "--config", str(inputs / "run.toml"), "-o", str(run), *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "evo_cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def lines_written(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def results(run: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "model/model.safetensors", "model/config.json", "best/model.safetensors")
    last = f"checkpoints/step_{STEPS:08d}"
    return {name: (run / name).read_bytes() for name in (*names, f"{last}/optimizer.safetensors")}


@pytest.fixture(scope="module")
def whole_run(inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start(inputs, run)) == f"{run / 'model'}\n"
    return run


def wait_until(process: subprocess.Popen, condition) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.001)


def test_an_uninterrupted_run_is_complete(whole_run):
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]

    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert records[-1]["valid_bits_per_base"] < records[9]["valid_bits_per_base"]
    assert (whole_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    description = json.loads((whole_run / "run.json").read_text())
    assert len(description["data"]["stores"][0]["sources"][0]["sha256"]) == 64
    assert description["sessions"][0]["versions"].keys() == {"evo", "python", "torch", "numpy"}


def test_kills_at_any_moment_leave_no_trace(inputs, tmp_path, whole_run):
    run, rng = tmp_path / "run", random.Random(1)
    half_written = "checkpoints/.step_*.partial-*"
    # before anything is written; in the first steps; then, twice each, while a checkpoint is being written and a moment
    # after a step
    moments = [lambda: run.exists(), lambda: lines_written(run) >= 2]
    for _ in range(2):
        seen = len(moments) * 4
        moments.append(lambda seen=seen: lines_written(run) >= seen and any(run.glob(half_written)))
        moments.append(lambda seen=seen: lines_written(run) >= seen + rng.randrange(4, 9))
    killed = 0
    for moment in moments:
        process = start(inputs, run, "--resume")
        wait_until(process, moment)
        time.sleep(rng.random() * 0.005)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL

    assert killed >= 3  # the others finished first, on a machine that is busy
    finish(start(inputs, run, "--resume"))

    assert results(run) == results(whole_run)
    assert len(json.loads((run / "run.json").read_text())["sessions"]) >= 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on_without_its_inputs(inputs, tmp_path, whole_run, number, code):
    run = tmp_path / "run"
    process = start(inputs, run)
    wait_until(process, lambda: lines_written(run) >= 6)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (code, ""), err
    assert "stopped and saved; go on with `evo train -o" in err
    stopped = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
    assert 6 <= stopped < STEPS
    assert lines_written(run) == stopped
    assert (run / "model" / "model.safetensors").exists()

    command = [sys.executable, "-m", "evo_cli", "train", "-o", str(run), "--resume"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert results(run) == results(whole_run)
