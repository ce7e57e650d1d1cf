"""Checkpoints of a run: complete and checked, or not there. Knows nothing of data or of how a step is made.

    RUN/checkpoints/step_00000100/model/                 weights, in the format of `sh2.checkpoint`
    RUN/checkpoints/step_00000100/adapter.safetensors    of a run that trains adapters, which `model` has merged
    RUN/checkpoints/step_00000100/optimizer.safetensors  moments and step count by parameter name, float32
    RUN/checkpoints/step_00000100/trainer.json           progress, configuration, SHA-256 of the other files

A folder is written under a temporary name, synced to the disk, and renamed: a kill at any moment leaves the
checkpoints before it as they were.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from sh2.checkpoint import load, save_model
from sh2.checkpoint.adapters import load_adapters, save_adapters
from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.safetensors_file import write_safetensors
from sh2.checkpoint.tensors import LazyTensor
from sh2.errors import Sh2Error
from sh2.lora import has_adapters
from sh2.train.optimizer import optimizer_tensors, restore_optimizer
from sh2.train.records import write_json


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
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self._folder = folder
        self._keep_last = keep_last

    def clean(self) -> None:
        """Remove what a kill left half-written or half-removed."""
        remove_leftovers(self._folder)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        names = (re.fullmatch(r"step_(\d{8,})", path.name) for path in self._folder.glob("step_*"))
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"

    def save(self, model: nn.Module, optimizer: torch.optim.AdamW, progress: Progress) -> Path:
        """Write the checkpoint of this step, then drop those no longer kept."""
        path = self.path(progress.step)
        with replacing(path) as partial:
            partial.mkdir()
            save_model(model, partial / "model")
            if has_adapters(model):
                save_adapters(model, partial / "adapter.safetensors")
            moments = {name: LazyTensor.of(tensor) for name, tensor in optimizer_tensors(model, optimizer).items()}
            write_safetensors(partial / "optimizer.safetensors", moments, {})
            state = asdict(progress)
            files = {str(file.relative_to(partial)): file_sha256(file) for file in _files(partial)}
            write_json(partial / "trainer.json", {"files": files, "state": state, "sha256": _digest(files, state)})
        self._prune(progress)
        return path

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

    def restore(self, step: int, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Load the weights and the optimizer's state of a checkpoint, bit for bit."""
        path = self.path(step)
        if has_adapters(model):  # the weights beside them are those the run began from
            load_adapters(model, path / "adapter.safetensors")
        else:
            model.load_state_dict(load(path / "model").state_dict())
        restore_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"))

    def _prune(self, progress: Progress) -> None:
        steps = self.steps()
        kept = {*steps[-self._keep_last :], progress.step}
        if progress.best is not None:
            kept.add(progress.best.step)
        for step in set(steps) - kept:
            _remove(self.path(step))


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
