"""Checkpoints that processes hand on, in a module that these can import."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sh2.parallel.processes import Processes
from sh2.train import checkpoints, files
from sh2.train.checkpoints import Checkpoints
from sh2.train.optimizer import build_optimizer
from sh2.train.team import ALONE
from tests.sh2.parallel.training import Case, build, group

SHARD_BYTES = 12_000  # a dozen files of weights, and two of moments to each


def hand_on(case: Case, begin: Path, end: Path, shard_bytes: int) -> None:
    """In every process of a group: read a checkpoint into shares without values, and write it again elsewhere.

    What a process hashed and wrote goes into `end`.N.json.
    """
    processes = group()
    done = _hand_on(case, begin, end, shard_bytes, processes)
    end.with_name(f"{end.name}.{processes.place.rank}.json").write_text(json.dumps(done))


def hand_on_alone(case: Case, begin: Path, end: Path, shard_bytes: int) -> None:
    """The same in one process."""
    _hand_on(case, begin, end, shard_bytes, None)


def _hand_on(case: Case, begin: Path, end: Path, shard_bytes: int, processes: Processes | None) -> dict[str, list[str]]:
    done: dict[str, list[str]] = {"hashed": [], "written": []}
    saved = checkpoints.SHARD_BYTES, files.file_sha256, files.write_safetensors

    def noting(what: str, function: Any) -> Any:
        def noted(path: Path, *others: Any) -> Any:
            done[what].append(path.name)
            return function(path, *others)

        return noted

    model, team = build(case, processes)
    optimizer = build_optimizer(model, case.config())
    with Checkpoints(begin, keep_last=9, team=team or ALONE) as first:
        files.file_sha256 = noting("hashed", saved[1])
        progress = first.newest(lambda text: None)
        assert progress is not None
        first.restore(progress.step, model, optimizer)
    files.file_sha256, files.write_safetensors = saved[1], noting("written", saved[2])
    checkpoints.SHARD_BYTES = shard_bytes
    with Checkpoints(end, keep_last=9, team=team or ALONE) as second:
        second.save(model, optimizer, progress)
        second.wait()
    checkpoints.SHARD_BYTES, files.file_sha256, files.write_safetensors = saved
    return done


def find_newest(case: Case, folders: Sequence[Path]) -> None:
    """In every process of a group: look for the newest checkpoint of each folder; it and the notes go into N.json."""
    processes = group()
    _, team = build(case, processes)
    assert team is not None
    for folder in folders:
        notes: list[str] = []
        with Checkpoints(folder, keep_last=9, team=team) as found:
            progress = found.newest(notes.append)
        text = json.dumps([progress.step if progress else None, notes])
        (folder / f"{processes.place.rank}.json").write_text(text)


def dies(case: Case, folder: Path, victim: int, at: str) -> None:
    """In every process of a group: go back to a checkpoint, and kill one process while the next is saved.

    Args:
        at: the function that it dies in, leaving the file `died`.
    """
    processes = group()
    model, team = build(case, processes)
    assert team is not None
    optimizer = build_optimizer(model, case.config())
    with Checkpoints(folder, keep_last=1, team=team) as found:
        progress = found.newest(lambda text: None)
        assert progress is not None
        found.restore(progress.step, model, optimizer)

        def die(*_: object) -> None:
            folder.with_name("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

        if processes.place.rank == victim:
            for module in (files, checkpoints):
                if hasattr(module, at):
                    setattr(module, at, die)
        later = {**{name: getattr(progress, name) for name in progress.__slots__}, "step": progress.step + 1}
        found.save(model, optimizer, checkpoints.Progress(**later))
        found.wait()
