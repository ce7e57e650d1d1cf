"""Checkpoints are written while training goes on, hold the step that they are of, and fail in words."""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sh2.errors import Sh2Error
from sh2.train import checkpoints
from sh2.train.folder import RunFolder
from sh2.train.loop import Outcome
from tests.sh2.test_train_loop import Watcher, contents, stopping_after, trainer


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))


@pytest.fixture
def whole_run(tmp_path):
    trainer(tmp_path / "whole").run()
    return tmp_path / "whole"


def test_training_goes_on_while_a_checkpoint_of_its_step_is_written(tmp_path, monkeypatch, whole_run):
    """The writer is held up until three more updates are made; what it writes is of the step that it is for."""
    later, write = threading.Event(), checkpoints.write_files
    written = []

    class Watching(Watcher):
        def step(self, record):
            super().step(record)
            if record.step == 7:
                written.append(steps(tmp_path / "run"))
                later.set()

    def slow(folder, *arguments):
        if folder.name.startswith(".step_00000005"):
            assert later.wait(timeout=60)
        return write(folder, *arguments)

    monkeypatch.setattr(checkpoints, "write_files", slow)
    trainer(tmp_path / "run", watcher=Watching()).run(stopping_after(8))

    assert written == [[]]
    assert steps(tmp_path / "run") == [5, 8]
    os.rename(tmp_path / "run" / "checkpoints" / "step_00000008", tmp_path / "step_00000008")
    again = trainer(tmp_path / "run")
    assert again.restore() == 5
    again.run()
    assert contents(tmp_path / "run") == contents(whole_run)


@pytest.mark.parametrize("full_at", ["/model.safetensors", "optimizer.safetensors", "trainer.json"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, monkeypatch, whole_run, full_at):
    fsync = os.fsync

    def full(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".step_00000010.partial" in name and name.replace(".partial-trainer", "trainer").endswith(full_at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Sh2Error, match=r"cannot write .*step_00000010.*: No space left on device") as caught:
            trainer(tmp_path / "run").run()
        assert caught.value.__notes__ == ["make room, then go on from the last complete checkpoint with `--resume`"]

    assert steps(tmp_path / "run") == [5]
    assert list((tmp_path / "run" / "checkpoints").glob(".*")) == []
    again = trainer(tmp_path / "run")
    assert again.restore() == 5
    assert again.run() is Outcome.FINISHED
    assert contents(tmp_path / "run") == contents(whole_run)


SCRIPT = """
import resource, sys
from pathlib import Path
from tests.sh2.test_train_loop import trainer
from sh2.errors import Sh2Error
run = trainer(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    run.run()
except Sh2Error as error:
    print(error)
"""


def test_a_file_that_may_not_grow_is_told(tmp_path, whole_run):
    """The system itself refuses: the moments are twice as large as the weights, and fit no more."""
    moments = (whole_run / "checkpoints" / "step_00000012" / "optimizer.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(moments * 3 // 4)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/checkpoints/step_00000005: File too large"), done
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert steps(tmp_path / "run") == []
    trainer(tmp_path / "run").restore()
    assert trainer(tmp_path / "run").run() is Outcome.FINISHED
    assert contents(tmp_path / "run") == contents(whole_run)


def test_what_fails_in_the_background_does_not_hide_what_failed_before(tmp_path, monkeypatch):
    def broken(*_):
        raise Sh2Error("the disk is gone")

    class Dying(Watcher):
        def step(self, record):
            if record.step == 6:
                raise KeyError("first")

    monkeypatch.setattr(checkpoints, "write_files", broken)
    with pytest.raises((KeyError, Sh2Error)) as caught:
        trainer(tmp_path, valid_windows=0, watcher=Dying()).run()

    assert "first" in str(caught.value) or "the disk is gone" in str(caught.value)


def test_progress_says_how_many_processes_wrote_it(whole_run):
    state = json.loads((RunFolder(whole_run).checkpoints / "step_00000012" / "trainer.json").read_text())["state"]

    assert state["config"]["parallel"] == "dp=1,cp=1,tp=1"
    assert state["windows"] == 24
