"""A training run from the command line: its configuration, its data, the loop, and what is written beside the model."""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data.prepare import prepare
from data.source import STDIN
from data.store import Split, TokenStore, is_store
from data.windows import WindowOptions, Windows
from evo_cli.inference import memory_bytes, resolve_device, say, warn
from evo_cli.progress import progress_bar
from evo_cli.training.config import Flags, RunConfig, merge, read_tables
from evo_cli.training.watch import BarObserver, Observers, StopSignals
from sh2.accounting import training_bytes
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train.config import Precision, TrainConfig, check_unchanged
from sh2.train.folder import RunFolder
from sh2.train.loop import Outcome, Trainer
from sh2.train.plot import plot_run
from sh2.train.records import write_atomically, write_json
from sh2.train.tensorboard import TensorBoard, require_tensorboard

# marks a soft-masked base as one to count, without changing a weighted sum in float32
_NO_WEIGHT = 1e-30


def train_run(output: Path, flags: Flags, *, config: Path | None, resume: bool, tensorboard: bool) -> int:
    """Train into a folder; return 0, or 128 + the number of the signal that stopped the run.

    Raises:
        Sh2Error: the configuration or the folder do not allow it, or training diverged.
        DataError: the data do not allow it.
    """
    folder = RunFolder(output)
    if folder.has_run() and not resume:
        raise Sh2Error(f"{output} already holds a run").hint(
            "go on with it by `--resume`, or give another folder with `-o`"
        )
    if resume and not folder.has_run() and flags == Flags() and config is None:
        raise Sh2Error(f"{output} holds no run to go on with").hint("check the folder's name")
    if tensorboard:
        require_tensorboard()
    saved = [folder.config] if resume and folder.config.exists() else []
    layers = [read_tables(path) for path in [*saved, *([config] if config else [])]]
    run = RunConfig.from_tables(_resolved(merge(*layers, flags=flags)))
    if saved and folder.data.exists():
        began = RunConfig.from_tables(layers[0])
        check_unchanged("data", began.data_table(), run.data_table())
    with folder.locked(), open_data(run, folder) as data:
        return _train(run, data, folder, resume=resume, tensorboard=tensorboard)


def _resolved(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Decide what is left to this machine, so that the saved configuration says what was done."""
    train = tables["train"]
    if isinstance(train.setdefault("device", "auto"), str):
        train["device"] = resolve_device(train["device"])
    train.setdefault("precision", Precision.FP32.value if train["device"] == "cpu" else Precision.BF16.value)
    train["threads"] = train.get("threads") or torch.get_num_threads()
    return tables


def _train(run: RunConfig, data: "RunData", folder: RunFolder, *, resume: bool, tensorboard: bool) -> int:
    torch.set_num_threads(run.train.threads)
    _check_memory(run)
    model = StripedHyena2(run.model, seed=run.train.seed).to(run.train.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    observers = Observers()
    trainer = Trainer(
        model,
        run.train,
        folder=folder,
        train=data.train,
        valid=data.valid,
        data_identity=data.identity,
        observer=observers,
    )
    with StopSignals() as signals:
        step = trainer.restore()
        write_atomically(folder.config, run.to_toml().encode())
        sessions = _sessions(folder)
        write_json(folder.description, describe_run(run, data, parameters=parameters, from_step=step, before=sessions))
        _announce(run, data, parameters, step if resume else None)
        events = closing(TensorBoard(folder.tensorboard, after_step=step)) if tensorboard else nullcontext()
        with events as writer, progress_bar("step", total=run.train.steps, start=step, every_seconds=0) as bar:
            observers.add(BarObserver(bar))
            if writer is not None:
                observers.add(writer)
            outcome = trainer.run(signals.stop)
    plot_run(folder.metrics, folder.plot, title=f"{folder.path.resolve().name}: {parameters / 1e6:,.1f}M parameters")
    if outcome is Outcome.STOPPED and signals.received is not None:
        say(f"stopped and saved; go on with `evo train -o {shlex.quote(str(folder.path))} --resume`")
        return 128 + signals.received
    say(f"the model is {folder.model}, the curve {folder.plot}")
    return 0


def _check_memory(run: RunConfig) -> None:
    """Refuse a model whose weights, gradients and moments alone are more than the device holds.

    Raises:
        Sh2Error: names both sizes.
    """
    needed, there = training_bytes(run.model), memory_bytes(run.train.device)
    if needed > there:
        raise Sh2Error(
            f"training this model takes {needed / 2**30:,.1f} GiB before activations; {run.train.device} has "
            f"{there / 2**30:,.1f} GiB of memory"
        ).hint("take a smaller `--preset`: `evo models` lists what each takes (training_gib)")


def _sessions(folder: RunFolder) -> list[Any]:
    """What `run.json` says of the sessions before this one; nothing if it cannot be read, for no number hangs on it."""
    try:
        sessions = json.loads(folder.description.read_text(encoding="utf-8"))["sessions"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        warn(f"{folder.description} is damaged: what it said of earlier sessions is lost")
        return []
    return list(sessions)


def _announce(run: RunConfig, data: "RunData", parameters: int, resumed_at: int | None) -> None:
    train = run.train
    valid = f"{len(data.valid):,} for validation" if data.valid is not None else "none for validation"
    say(f"data: {data.store.path}, {len(data.train):,} windows of {train.length:,} bp an epoch, {valid}")
    compiled = ", compiled as it starts" if train.compile else ""
    say(
        f"model: {parameters / 1e6:,.1f}M parameters, layout {run.model.layout}, {train.precision} on {train.device}, "
        f"{train.threads} threads{compiled}; {train.windows_per_step * train.length:,} tokens a step"
    )
    segments = data.store.segments(Split.TRAIN)
    bases = int((segments["end"] - segments["start"]).sum())
    if train.length > bases:
        warn(f"windows of {train.length:,} bp are longer than the {bases:,} bases to train on: each repeats them")
    if data.valid is None and train.valid_windows:
        warn("no record is held out for validation: training without it")
    if resumed_at is not None:
        say(f"resuming after step {resumed_at:,}" if resumed_at else "no checkpoint yet: starting at the beginning")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """The data of a run, open."""

    store: TokenStore
    train: Windows
    valid: Windows | None
    identity: str  # checksum of the tokens and of what is for training and validation


@contextmanager
def open_data(config: RunConfig, folder: RunFolder) -> Iterator[RunData]:
    """Open the store given as input, or prepare one from the sequence files given, in the run's folder.

    Raises:
        DataError: an input cannot be read, or nothing in it is for training.
        Sh2Error: there is no input, or a store beside other inputs.
    """
    with TokenStore(_store_path(config, folder)) as store:
        train = config.train
        valid = None
        if len(store.segments(Split.VALID)) and train.valid_windows:
            valid = Windows(store, Split.VALID, _valid_options(train))
        options = WindowOptions(
            length=train.length,
            seed=train.seed,
            reverse_complement=train.reverse_complement,
            lower_case_weight=train.lower_case_weight,
        )
        yield RunData(store=store, train=Windows(store, Split.TRAIN, options), valid=valid, identity=_identity(store))


def _valid_options(train: TrainConfig) -> WindowOptions:
    return WindowOptions(
        length=train.length,
        seed=0,
        reverse_complement=False,
        lower_case_weight=train.lower_case_weight or _NO_WEIGHT,
    )


def _store_path(config: RunConfig, folder: RunFolder) -> Path:
    if not config.inputs:
        raise Sh2Error("no input is given").hint("give FASTA or GenBank files, or one token store (.h5)")
    if folder.config.exists() and folder.data.exists():
        return folder.data  # a resumed run goes on with the data it began with, whatever became of the files
    stores = [path for path in config.inputs if path != STDIN and path.is_file() and is_store(path)]
    if not stores:
        with progress_bar("preparing") as bar:
            report = prepare(
                config.inputs, folder.data, config.prepare, lambda done, total: bar.update(done, total or None)
            )
        for text in report.warnings:
            warn(text)
        return folder.data
    if len(config.inputs) > 1:
        raise Sh2Error(f"the token store {stores[0]} must be the only input, not one of {len(config.inputs)}").hint(
            "put all sequences into one store with `evo prepare INPUT... -o STORE.h5`"
        )
    return stores[0]


def _identity(store: TokenStore) -> str:
    digest = hashlib.sha256(store.checksum.encode())
    for split in (Split.TRAIN, Split.VALID):
        digest.update(store.segments(split).tobytes())
    return digest.hexdigest()


def describe_run(config: RunConfig, data: RunData, *, parameters: int, from_step: int, before: Sequence[Any]) -> Any:
    """Say what made a run, as plain values for `run.json`; `before` are the sessions of the run so far."""
    session = {
        "from_step": from_step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": config.train.device,
        "threads": config.train.threads,
        "machine": platform.platform(),
        "versions": {
            "evo": version("evo-sh2"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
    }
    return {
        "seed": config.train.seed,
        "parameters": parameters,
        "data": {
            "store": str(data.store.path),
            "identity": data.identity,
            "tokens_sha256": data.store.checksum,
            "sources": data.store.metadata["sources"],
            "train_windows": len(data.train),
            "valid_windows": 0 if data.valid is None else len(data.valid),
        },
        "sessions": [*before, session],
    }
