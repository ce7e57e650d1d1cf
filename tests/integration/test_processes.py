"""`evo train` in several processes: one voice, and a run that survives whatever becomes of any of them."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.integration.test_resume import CONFIG, lines_written

STEPS = 24
FLAGS = ("--steps", str(STEPS), "--length", "128", "--batch-size", "4", "--accumulation", "1", "--peak-tflops", "1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "run.toml").write_text(CONFIG)
    (folder / "bases.fa").write_text("".join(f">r{record}\n{'ACGTTGCAGG' * 150}\n" for record in range(12)))
    return folder


def words(inputs: Path, run: Path, *flags: str) -> list[str]:
    return ["train", str(inputs / "bases.fa"), "--config", str(inputs / "run.toml"), "-o", str(run), *flags]


def launch(
    count: int, inputs: Path, run: Path, *flags: str, slurm: bool = False, limited: int | None = None
) -> list[subprocess.Popen[str]]:
    """Start processes as torchrun or srun would; one of them may be `limited` to small files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "MASTER_PORT": port}
    processes = []
    for rank in range(count):
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        if slurm:
            place = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": count, "SLURM_LOCALID": rank}
            place |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": 1}
        environment = os.environ | own | {name: str(value) for name, value in place.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "evo_cli", *words(inputs, run, *FLAGS, *flags)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        if rank == limited:
            resource.prlimit(processes[-1].pid, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    return processes


def wait_until(processes: Sequence[subprocess.Popen[str]], condition: Callable[[], bool]) -> None:
    while all(process.poll() is None for process in processes) and not condition():
        time.sleep(0.005)


def ends(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str, str]:
    """Exit codes, and what all said together."""
    said = [process.communicate(timeout=120) for process in processes]
    return [process.returncode for process in processes], *("".join(part) for part in zip(*said, strict=True))


def results(run: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "model/model.safetensors", "best/model.safetensors")
    return {name: (run / name).read_bytes() for name in (*names, f"checkpoints/step_{STEPS:08d}/optimizer.safetensors")}


@pytest.fixture(scope="module")
def whole_run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that was left alone."""
    run = tmp_path_factory.mktemp("whole") / "run"
    codes, out, err = ends(launch(2, inputs, run, slurm=True))
    assert (codes, out) == ([0, 0], f"{run / 'model'}\n"), err
    assert err.count("data: ") == err.count("the model is") == 1
    assert "2 processes: dp=2,cp=1,tp=1" in err
    return run


@pytest.mark.parametrize(("victim", "saving"), [(0, False), (0, True), (1, True)])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(
    victim: int, saving: bool, inputs: Path, tmp_path: Path, whole_run: Path
) -> None:
    run = tmp_path / "run"
    processes = launch(2, inputs, run)
    writing = "checkpoints/.step_*.partial-*"
    wait_until(processes, lambda: lines_written(run) >= 9 and (not saving or any(run.glob(writing))))
    processes[victim].kill()
    codes, out, err = ends(processes)

    assert (codes[victim], codes[1 - victim], out) == (-signal.SIGKILL, 1, ""), err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: process {2 - victim} of 2 has lost contact with another, which is gone"], err
    assert "Traceback" not in err

    codes, _, err = ends(launch(2, inputs, run, "--resume"))
    assert codes == [0, 0], err
    assert results(run) == results(whole_run)
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [session["parallel"] for session in sessions] == ["dp=2,cp=1,tp=1"] * 2
    assert sessions[1]["from_step"] > 0


def test_what_one_process_cannot_write_is_told_once_and_the_run_goes_on(
    inputs: Path, tmp_path: Path, whole_run: Path
) -> None:
    """It is not the one that talks: each writes a file of a checkpoint."""
    run = tmp_path / "run"
    codes, out, err = ends(launch(2, inputs, run, limited=1))

    assert (codes, out) == ([1, 1], ""), err
    errors = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert errors == [
        f"error: cannot write {run / 'checkpoints' / 'step_00000004'}: File too large",
        "hint: make room, then go on from the last complete checkpoint with `--resume`",
    ], err
    assert "Traceback" not in err
    assert list((run / "checkpoints").glob("step_*")) == []

    codes, _, err = ends(launch(2, inputs, run, "--resume"))
    assert codes == [0, 0], err
    assert results(run) == results(whole_run)


def test_a_signal_to_one_stops_all_where_one_process_goes_on(inputs: Path, tmp_path: Path, whole_run: Path) -> None:
    run = tmp_path / "run"
    processes = launch(2, inputs, run, "--parallel", "tp=2")
    wait_until(processes, lambda: lines_written(run) >= 6)
    processes[1].send_signal(signal.SIGTERM)
    codes, out, err = ends(processes)

    assert (codes, out) == ([143, 143], ""), err
    assert err.count("stopped and saved; go on with `evo train -o") == 1
    stopped = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
    assert lines_written(run) == stopped >= 6

    command = [sys.executable, "-m", "evo_cli", "train", "-o", str(run), "--resume", "--parallel", "dp"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert alone.returncode == 0, alone.stderr
    assert "warning: the run began with parallel dp=1,cp=1,tp=2 and goes on with dp=1,cp=1,tp=1" in alone.stderr
    lines, want = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, whole_run))
    losses, wanted = ([json.loads(line)["loss"] for line in file] for file in (lines, want))
    assert losses == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lr", "-1"], "train field `lr` must be a number above 0, not -1.0"),  # before they meet
        (["--parallel", "tp=4"], "parallel `tp=4` needs a multiple of 4 processes; there are 2"),  # after
    ],
)
def test_a_mistake_is_told_once(flags: list[str], sentence: str, inputs: Path, tmp_path: Path) -> None:
    codes, out, err = ends(launch(2, inputs, tmp_path / "run", *flags))

    assert (codes, out) == ([1, 1], "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert errors[0].startswith(f"error: {sentence}")
    assert "Traceback" not in err


def test_torchrun_starts_a_run(inputs: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evo_cli"]
    flags = ("--length", "512", "--batch-size", "2", "--steps", "2", "--parallel", "cp=2")
    done = subprocess.run(
        [*torchrun, *words(inputs, tmp_path / "run", *flags)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run' / 'model'}\n"), done.stderr
    assert "2 processes: dp=1,cp=2,tp=1" in done.stderr
