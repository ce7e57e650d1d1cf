"""A training run from the command line: its configuration, its data, the loop, and what is written beside the model."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from evo_cli.inference import memory_bytes, resolve_device, say, warn
from evo_cli.progress import progress_bar
from evo_cli.training.config import Flags, RunConfig, merge, read_tables
from evo_cli.training.data import RunData, open_data
from evo_cli.training.description import describe
from evo_cli.training.model import begin, build
from evo_cli.training.processes import Meeting, one_voice
from evo_cli.training.watch import BarObserver, Observers, StopSignals
from sh2.checkpoint.adapters import save_adapters
from sh2.errors import Sh2Error
from sh2.parallel.processes import Processes, find_place
from sh2.planning.accounting import Numbers, count_parameters, training_bytes, weight_bytes
from sh2.planning.training_memory import training_peak_bytes
from sh2.train.config import Precision, check_unchanged
from sh2.train.folder import RunFolder
from sh2.train.loop import Outcome, Trainer
from sh2.train.plot import plot_run
from sh2.train.records import write_atomically
from sh2.train.tensorboard import TensorBoard, require_tensorboard

# an estimate of activations is a fifth over at most: this much over what there is, and it will not do
_SURELY_TOO_MUCH = 1.25


def train_run(output: Path, flags: Flags, *, config: Path | None, resume: bool, tensorboard: bool) -> int:
    """Train into a folder; return 0, or 128 + the number of the signal that stopped the run.

    Raises:
        Sh2Error: the configuration or the folder do not allow it, or training diverged.
        DataError: the data do not allow it.
    """
    place = find_place(os.environ)
    with one_voice(place) as meeting:
        code = _run(RunFolder(output), flags, meeting, config=config, resume=resume, tensorboard=tensorboard)
    if place is not None and place.rank:
        sys.exit(code)  # what is still to be said is the first one's to say
    return code


def _run(
    folder: RunFolder, flags: Flags, meeting: Meeting, *, config: Path | None, resume: bool, tensorboard: bool
) -> int:
    if folder.has_run() and not resume:
        raise Sh2Error(f"{folder.path} already holds a run").hint(
            "go on with it by `--resume`, or give another folder with `-o`"
        )
    if resume and not folder.has_run() and flags == Flags() and config is None:
        raise Sh2Error(f"{folder.path} holds no run to go on with").hint("check the folder's name")
    if tensorboard:
        require_tensorboard()
    saved = [folder.config] if resume and folder.config.exists() else []
    layers = [read_tables(path) for path in [*saved, *([config] if config else [])]]
    tables = resolved(merge(*layers, flags=flags), one_of_many=meeting.place is not None)
    run = RunConfig.from_tables(tables)
    if saved:
        began = RunConfig.from_tables(layers[0])
        check_unchanged("model", {"from": began.start}, {"from": run.start})
        check_unchanged("data", {"weights": began.weights}, {"weights": run.weights})
    if saved and folder.data.exists():
        check_unchanged("data", began.data_table(), run.data_table())
    processes = meeting.join(run.train.device)
    with _opened(run, folder, processes) as data:
        return _train(run, data, folder, processes, resume=resume, tensorboard=tensorboard)


@contextmanager
def _opened(run: RunConfig, folder: RunFolder, processes: Processes | None) -> Iterator[RunData]:
    """The data, which one process prepares, and the folder, which it holds, while the others wait."""
    if processes is None or processes.leads:
        with folder.locked(), open_data(run, folder) as data:
            if processes is not None:
                processes.of_leader(lambda: None)
            yield data
    else:
        processes.of_leader(lambda: None)
        with open_data(run, folder, prepared=True) as data:
            yield data


def resolved(tables: dict[str, dict[str, Any]], *, one_of_many: bool) -> dict[str, dict[str, Any]]:
    """Decide what is left to this machine, so that the saved configuration says what was done."""
    train = tables["train"]
    if isinstance(train.setdefault("device", "auto"), str):
        train["device"] = resolve_device(train["device"])
        if one_of_many:  # each has a GPU of its own
            train["device"] = train["device"].split(":")[0]
    train.setdefault("precision", Precision.FP32.value if train["device"] == "cpu" else Precision.BF16.value)
    train["threads"] = train.get("threads") or torch.get_num_threads()
    return tables


def _train(
    run: RunConfig, data: RunData, folder: RunFolder, processes: Processes | None, *, resume: bool, tensorboard: bool
) -> int:
    torch.set_num_threads(run.train.threads)
    _check_memory(run, 1 if processes is None else processes.place.ranks)
    model, team = build(run.model, run.train, processes)
    parameters, leads = count_parameters(run.model), team is None or team.leads
    begun = begin(model, team, run.start, run.train, folder)
    observers = Observers()
    trainer = Trainer(
        model,
        run.train,
        folder=folder,
        train=data.train,
        valid=data.valid,
        data_identity=data.identity,
        observer=observers,
        team=team,
    )
    with StopSignals() as signals:
        step = trainer.restore()
        if not (step or begun):
            another = f"train into another folder, from {run.start} again"
            raise Sh2Error(f"no checkpoint in {folder.checkpoints} is whole").hint(another)
        if leads:
            write_atomically(folder.config, run.to_toml().encode())
            shared = None if team is None else team.parallel
            describe(run, data, folder, parameters=parameters, parallel=shared, from_step=step)
        _announce(run, data, parameters, step if resume else None)
        if team is not None:
            say(f"{team.processes} processes: {team.parallel}")
        events = closing(TensorBoard(folder.tensorboard, after_step=step)) if tensorboard and leads else nullcontext()
        with events as writer, progress_bar("step", total=run.train.steps, start=step, every_seconds=0) as bar:
            observers.add(BarObserver(bar), *([writer] if writer is not None else []))
            outcome = trainer.run(signals.stop)
    if leads and run.train.lora is not None:
        save_adapters(model, folder.adapter)
    if leads:
        title = f"{folder.path.resolve().name}: {parameters / 1e6:,.1f}M parameters"
        plot_run(folder.metrics, folder.plot, title=title)
    return _end(outcome, signals.received, folder)


def _end(outcome: Outcome, received: int | None, folder: RunFolder) -> int:
    if outcome is Outcome.STOPPED:
        say(f"stopped and saved; go on with `evo train -o {shlex.quote(str(folder.path))} --resume`")
        return 128 + (received or signal.SIGTERM)  # another process's
    say(f"the model is {folder.model}, the curve {folder.plot}")
    return 0


def _check_memory(run: RunConfig, processes: int) -> None:
    """Refuse a run of which a process's share is more than the device holds.

    Activations count on a CPU alone, where a process that takes too much is killed without a word: a GPU says so.

    Raises:
        Sh2Error: names both sizes.
    """
    train = run.train
    adapted = train.lora is not None
    # beside adapters each process has all weights
    needed = weight_bytes(run.model, "fp32") if adapted else training_bytes(run.model) / processes
    there = memory_bytes(train.device)
    if needed > there:
        raise Sh2Error(
            f"training this model takes {needed / 2**30:,.1f} GiB before activations"
            f"{f' in each of {processes} processes' if processes > 1 else ''}; {run.train.device} has "
            f"{there / 2**30:,.1f} GiB of memory"
        ).hint("take a smaller `--preset`: `evo models` lists what each takes (training_gib)")
    tokens = train.batch_size * train.length // processes
    needed += training_peak_bytes(run.model, tokens, Numbers(dtype=train.precision, fused=False), train.recompute)
    if train.device == "cpu" and needed > _SURELY_TOO_MUCH * there:
        raise Sh2Error(
            f"a forward pass over {train.batch_size} windows of {train.length:,} bp takes about "
            f"{needed / 2**30:,.0f} GiB with its backward; cpu has {there / 2**30:,.1f} GiB of memory"
        ).hint("lower `--batch-size` (and raise `--accumulation`) or `--length`, or give `--recompute full`")


def _announce(run: RunConfig, data: RunData, parameters: int, resumed_at: int | None) -> None:
    train = run.train
    for line in data.announce(train):
        say(line)
    compiled = ", compiled as it starts" if train.compile else ""
    say(
        f"model: {parameters / 1e6:,.1f}M parameters, layout {run.model.layout}, {train.precision} on {train.device}, "
        f"{train.threads} threads{compiled}; {train.windows_per_step * train.length:,} tokens a step"
    )
    bases = min(part.bases for part in data.parts)
    if train.length > bases:
        warn(f"windows of {train.length:,} bp are longer than the {bases:,} bases to train on: each repeats them")
    if data.valid is None and train.valid_windows:
        warn("no record is held out for validation: training without it")
    if resumed_at is not None:
        say(f"resuming after step {resumed_at:,}" if resumed_at else "no checkpoint yet: starting at the beginning")
