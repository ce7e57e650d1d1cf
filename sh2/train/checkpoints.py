"""Checkpoints of a run: complete and checked, or not there. Knows nothing of data or of how a step is made.

    RUN/checkpoints/step_00000100/model/                 weights, in the format of `sh2.checkpoint`
    RUN/checkpoints/step_00000100/adapter.safetensors    of a run that trains adapters, which `model` has merged
    RUN/checkpoints/step_00000100/optimizer.safetensors  moments and step count by parameter name, float32
    RUN/checkpoints/step_00000100/trainer.json           progress, configuration, SHA-256 of the other files

A folder is written under a temporary name, synced to the disk, and renamed: a kill at any moment leaves the
checkpoints before it as they were. The run goes on meanwhile, for what is written are copies in the host's memory.

However many processes train, the files are those of one: whole tensors, each put together from its parts when it is its
turn. So any number of processes can go on with them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sh2.checkpoint.adapters import load_adapters, save_adapters
from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.folder import read_model_tensors, write_model_folder
from sh2.checkpoint.safetensors_file import read_safetensors, write_safetensors
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.lora import has_adapters, plain_state
from sh2.model import StripedHyena2
from sh2.parallel.shares import local
from sh2.train.optimizer import optimizer_tensors, restore_optimizer
from sh2.train.records import write_json
from sh2.train.team import ALONE, Parts, Team


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best validation so far."""

    step: int
    valid_loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands; there are no random states, for nothing random happens after the first weights."""

    step: int  # updates made
    windows: int  # training windows used; the next update begins with this one
    best: Best | None
    config: dict[str, Any]  # of the run, as `TrainConfig.to_dict`
    model: dict[str, Any]  # as `ModelConfig.to_dict`
    data: str  # identity of the data
    torch: str  # version
    evo: str  # version

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        best = values["best"]
        return cls(**{**values, "best": None if best is None else Best(**best)})


class Checkpoints:
    """The checkpoints of one run; every process of a team has them, and one writes. A context manager."""

    def __init__(self, folder: Path, *, keep_last: int, team: Team = ALONE) -> None:
        self._folder = folder
        self._keep_last = keep_last
        self._team = team
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let what is being written be written; what goes wrong with it does not hide what went wrong before."""
        self._thread.shutdown()

    def clean(self) -> None:
        """Remove what a kill left half-written or half-removed."""
        remove_leftovers(self._folder)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        names = (re.fullmatch(r"step_(\d{8,})", path.name) for path in self._folder.glob("step_*"))
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"

    def save(self, model: StripedHyena2, optimizer: torch.optim.AdamW, progress: Progress) -> None:
        """Copy what the checkpoint of this step holds, and begin to write it; then drop those no longer kept.

        Raises:
            Sh2Error: the one before it could not be written.
        """
        self.wait()
        weights = {name: _copy(read()) for name, (_, read) in plain_state(model).items()}
        moments = {name: _copy(tensor) for name, tensor in optimizer_tensors(model, optimizer).items()}
        adapted = model if has_adapters(model) else None
        self._writing = self._thread.submit(self._write, weights, moments, progress, adapted)
        if adapted is not None:
            self.wait()

    def wait(self) -> None:
        """Return once what has been saved is written.

        Raises:
            Sh2Error: the disk is full, or gone.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except Sh2Error as error:
                raise error.hint("make room, then go on from the last complete checkpoint with `--resume`") from None

    def check(self) -> None:
        """Raise what went wrong with a checkpoint in the background, if it is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def save_model(self, model: StripedHyena2, folder: Path) -> None:
        """Copy the model alone, and begin to write it.

        Raises:
            Sh2Error: what was saved before could not be written.
        """
        self.wait()
        weights = {name: _copy(read()) for name, (_, read) in plain_state(model).items()}
        self._writing = self._thread.submit(self._write_model, folder, model.config, weights)

    def _write_model(self, folder: Path, config: ModelConfig, weights: Parts) -> None:
        if self._team.leads:
            write_model_folder(folder, config, self._team.whole(weights))
        else:
            self._team.send(weights)

    def _write(self, weights: Parts, moments: Parts, progress: Progress, adapted: nn.Module | None) -> None:
        if not self._team.leads:
            self._team.send(weights)
            self._team.send(moments)
            return
        with replacing(self.path(progress.step)) as partial:
            partial.mkdir()
            write_model_folder(partial / "model", ModelConfig.from_dict(progress.model), self._team.whole(weights))
            if adapted is not None:
                save_adapters(adapted, partial / "adapter.safetensors")
            write_safetensors(partial / "optimizer.safetensors", self._team.whole(moments), {})
            state = asdict(progress)
            files = {str(file.relative_to(partial)): file_sha256(file) for file in _files(partial)}
            write_json(partial / "trainer.json", {"files": files, "state": state, "sha256": _digest(files, state)})
        self._prune(progress)

    def newest(self, warn: Callable[[str], None]) -> Progress | None:
        """Return the progress of the newest checkpoint whose checksums hold; None if there is none.

        One that is damaged is renamed to `step_N.damaged`, with a warning, and the one before it is taken.
        """
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                return read_progress(path)
            except Sh2Error as error:
                damaged = path.with_name(f"{path.name}.damaged")
                shutil.rmtree(damaged, ignore_errors=True)
                os.replace(path, damaged)
                warn(f"warning: {error}; kept as {damaged.name}, going back to the checkpoint before it")
        return None

    @torch.no_grad()
    def restore(self, step: int, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Load the weights and the optimizer's state of a checkpoint, bit for bit, tensor by tensor."""
        path = self.path(step)
        if has_adapters(model):  # the weights beside them are those the run began from
            load_adapters(model, path / "adapter.safetensors")
        else:
            stored = read_model_tensors(path / "model")
            for name, tensor in model.state_dict().items():
                local(tensor).copy_(self._team.take(name, stored[name].read()))
        moments = read_safetensors(path / "optimizer.safetensors")
        restore_optimizer(model, optimizer, moments, self._team.take)

    def _prune(self, progress: Progress) -> None:
        steps = self.steps()
        kept = {*steps[-self._keep_last :], progress.step}
        if progress.best is not None:
            kept.add(progress.best.step)
        for step in set(steps) - kept:
            _remove(self.path(step))


def _copy(tensor: Tensor) -> Tensor:
    """This process's part, in the host's memory, where no step changes it."""
    return local(tensor.detach()).to("cpu", copy=True)


def read_progress(path: Path) -> Progress:
    """Read `trainer.json` of a checkpoint and check every file of it against its checksum.

    Raises:
        Sh2Error: a file is missing, truncated or changed; the message names it.
    """
    try:
        content = json.loads((path / "trainer.json").read_text())
        files, state = content["files"], content["state"]
        intact = content["sha256"] == _digest(files, state)
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise Sh2Error(f"checkpoint {path} is damaged: trainer.json is missing or changed")
    for name, digest in files.items():
        if not (path / name).is_file():
            raise Sh2Error(f"checkpoint {path} is damaged: {name} is missing")
        if file_sha256(path / name) != digest:
            raise Sh2Error(f"checkpoint {path} is damaged: {name} does not match its checksum")
    try:
        return Progress.from_dict(state)
    except (KeyError, TypeError):
        raise Sh2Error(f"checkpoint {path} was written by another version of evo") from None


def remove_leftovers(folder: Path) -> None:
    """Remove folders that a kill left under the names of `sh2.checkpoint.atomic`; no other process may write here."""
    for leftover in folder.glob(".*.partial-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)


def _remove(path: Path) -> None:
    """Remove a folder; a kill half-way leaves it under a name that `remove_leftovers` finds."""
    doomed = path.with_name(f".{path.name}.partial-{os.getpid()}")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(files: object, state: object) -> str:
    return hashlib.sha256(json.dumps([files, state], sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
