"""Checkpoints of a run: complete and checked, or not there. Knows nothing of data or of how a step is made.

    RUN/checkpoints/step_00000100/model/                 weights, in the format of `sh2.checkpoint`
    RUN/checkpoints/step_00000100/adapter.safetensors    of a run that trains adapters, which `model` has merged
    RUN/checkpoints/step_00000100/optimizer.safetensors  moments and step count by parameter name, float32
    RUN/checkpoints/step_00000100/trainer.json           progress, configuration, SHA-256 of the other files

Above 5 GB, weights and moments are several files with an index (`sh2.checkpoint.shards`). A folder is written under a
temporary name, synced to the disk, and renamed: a kill at any moment leaves the checkpoints before it as they were. The
run goes on meanwhile, for what is written are copies in the host's memory.

However many processes train, the files are those of one, to the names and sizes: each process writes some of them, of
whole tensors, each put together from its parts when it is its turn. So any number of processes can go on with them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sh2.checkpoint.adapters import load_adapters, save_adapters
from sh2.checkpoint.atomic import replacing, writing
from sh2.checkpoint.folder import WEIGHTS, check_replaceable, describe_model, read_model_tensors, weights_metadata
from sh2.checkpoint.shards import SHARD_BYTES, read_shards, shard_files, write_index
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.lora import has_adapters, plain_state
from sh2.model import StripedHyena2
from sh2.parallel.shares import local
from sh2.train.files import File, file_sha256, find_damage, write_files
from sh2.train.optimizer import optimizer_tensors, restore_optimizer
from sh2.train.records import write_json
from sh2.train.team import ALONE, Parts, Team

_OPTIMIZER = "optimizer.safetensors"
_ADAPTER = "adapter.safetensors"
_TRAINER = "trainer.json"


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
    """The checkpoints of one run; every process of a team has them. A context manager."""

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
            check_replaceable(folder)
        files = shard_files(WEIGHTS, self._team.whole(weights), SHARD_BYTES)
        with self._filling(folder) as partial:
            written = {name: File(tensors, weights_metadata()) for name, tensors in files.items()}
            write_files(partial, written, weights, self._team)
            if self._team.leads:
                describe_model(partial, config, files)

    def _write(self, weights: Parts, moments: Parts, progress: Progress, adapted: nn.Module | None) -> None:
        parts = {**weights, **moments}
        whole = self._team.whole(parts)
        model = shard_files(f"model/{WEIGHTS}", {name: whole[name] for name in weights}, SHARD_BYTES)
        optimizer = shard_files(_OPTIMIZER, {name: whole[name] for name in moments}, SHARD_BYTES)
        files = {name: File(tensors, weights_metadata()) for name, tensors in model.items()}
        files |= {name: File(tensors, {}) for name, tensors in optimizer.items()}
        with self._filling(self.path(progress.step)) as partial:
            digests = write_files(partial, files, parts, self._team)
            if self._team.leads:
                describe_model(partial / "model", ModelConfig.from_dict(progress.model), model)
                write_index(partial / _OPTIMIZER, optimizer)
                if adapted is not None:
                    save_adapters(adapted, partial / _ADAPTER)
                _write_progress(partial, progress, digests)
        if self._team.leads:
            self._prune(progress)

    @contextmanager
    def _filling(self, folder: Path) -> Iterator[Path]:
        """Yield a new folder for all processes to write into; when the first is done with it, it is complete.

        Raises:
            Sh2Error: the system refuses something.
        """
        with replacing(folder) if self._team.leads else writing(folder) as partial:
            if partial is not None:
                partial.mkdir()
            name = self._team.every("" if partial is None else partial.name)[0]
            yield folder.with_name(name)
        self._team.every(None)

    def newest(self, warn: Callable[[str], None]) -> Progress | None:
        """Return the progress of the newest checkpoint whose checksums hold; None if there is none.

        All processes call this, and each checks some files. A checkpoint that is damaged is renamed to
        `step_N.damaged`, with a warning, and the one before it is taken.
        """
        for step in reversed(self._team.every(self.steps())[0]):
            path = self.path(step)
            try:
                return read_progress(path, self._team)
            except Sh2Error as error:
                if self._team.leads:
                    damaged = path.with_name(f"{path.name}.damaged")
                    shutil.rmtree(damaged, ignore_errors=True)
                    os.replace(path, damaged)
                    warn(f"warning: {error}; kept as {damaged.name}, going back to the checkpoint before it")
        return None

    @torch.no_grad()
    def restore(self, step: int, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Load the weights and the optimizer's state of a checkpoint, bit for bit, tensor by tensor.

        It is one that `newest` has checked: of tensors in shares, a process reads its own alone.
        """
        path = self.path(step)
        if has_adapters(model):  # the weights beside them are those the run began from
            load_adapters(model, path / _ADAPTER)
        else:
            stored = read_model_tensors(path / "model")
            for name, tensor in model.state_dict().items():
                local(tensor).copy_(self._team.take(name, stored[name]))
        restore_optimizer(model, optimizer, read_shards(path / _OPTIMIZER), self._team.take)

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


def read_progress(path: Path, team: Team = ALONE) -> Progress:
    """Read `trainer.json` of a checkpoint and check every file of it against its checksum.

    Raises:
        Sh2Error: in all processes alike: a file is missing, truncated or changed; the message names it.
    """
    files, state = team.every(_read_trainer(path) if team.leads else None)[0] or (None, None)
    if files is None or state is None:
        raise Sh2Error(f"checkpoint {path} is damaged: {_TRAINER} is missing or changed")
    if damage := find_damage(path, files, team):
        raise Sh2Error(f"checkpoint {path} is damaged: {damage}")
    try:
        return Progress.from_dict(state)
    except (KeyError, TypeError):
        raise Sh2Error(f"checkpoint {path} was written by another version of evo") from None


def _read_trainer(path: Path) -> tuple[dict[str, str], dict[str, Any]] | None:
    """Checksums and progress; None if they are not what was written."""
    try:
        content = json.loads((path / _TRAINER).read_text())
        files, state = content["files"], content["state"]
        return (files, state) if content["sha256"] == _digest(files, state) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_progress(folder: Path, progress: Progress, digests: Mapping[str, str]) -> None:
    """Write `trainer.json`, the last file of a checkpoint.

    Args:
        digests: of the files that are known; the others are small.
    """
    own = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - digests.keys()
    files = {**digests, **{name: file_sha256(folder / name) for name in own}}
    files = dict(sorted(files.items()))
    state = asdict(progress)
    write_json(folder / _TRAINER, {"files": files, "state": state, "sha256": _digest(files, state)})


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


def _digest(files: object, state: object) -> str:
    return hashlib.sha256(json.dumps([files, state], sort_keys=True).encode()).hexdigest()
