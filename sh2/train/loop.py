"""The training loop: updates, validations and checkpoints in their order. Knows nothing of terminals or files of DNA.

Every number that a run writes to `metrics.jsonl`, and its weights, are a function of the configuration, the data and
the machine: a run that was killed at any moment and resumed from its last checkpoint repeats the lost steps exactly.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from sh2.checkpoint.folder import evo_version
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.planning.accounting import forward_flops
from sh2.train.checkpoints import Best, Checkpoints, Progress, remove_leftovers
from sh2.train.clock import Clock
from sh2.train.compilation import compile_blocks, many_graphs
from sh2.train.config import ROUNDING, TrainConfig, check_unchanged
from sh2.train.filters import filter_statistics
from sh2.train.folder import RunFolder
from sh2.train.fp8 import use_fp8_linears
from sh2.train.loader import Loader, WindowSource
from sh2.train.loss import NATS_TO_BITS
from sh2.train.noise import NoiseScale
from sh2.train.optimizer import build_optimizer
from sh2.train.profiling import profiled
from sh2.train.records import JsonLines, NoLines, SpeedRecord, StepRecord, keep_steps, read_lines
from sh2.train.schedule import learning_rate
from sh2.train.team import ALONE, Team
from sh2.train.update import Updates
from sh2.train.validation import Validation, validate


class Observer(Protocol):
    """Whoever shows a run to people."""

    def step(self, record: StepRecord) -> None:
        """One step is done and written."""

    def speed(self, record: SpeedRecord) -> None:
        """Every `log_every` steps."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # as asked by `should_stop`; the checkpoint and the model are of the step it got to


@dataclass(frozen=True, slots=True)
class _Measured:
    """A step whose numbers are still on the device."""

    step: int
    lr: float
    numbers: Tensor  # as `update` returns them
    weights: tuple[float, float]  # of the targets of the first forward pass, and of all


class Trainer:
    """One run in one folder."""

    def __init__(
        self,
        model: StripedHyena2,
        config: TrainConfig,
        *,
        folder: RunFolder,
        train: WindowSource,
        valid: WindowSource | None,
        data_identity: str,
        observer: Observer,
        team: Team | None = None,
    ) -> None:
        """Take the model, on its device and in float32, and its data.

        `data_identity` is compared on resume: a checksum of the data. `valid` None is a run without validation. `team`
        is who has a share of the model, where that is not this process alone.

        Raises:
            Sh2Error: the training data has no window, or the backend or the compiler cannot run the model here.
        """
        if not len(train):
            raise Sh2Error(f"the training data holds no window of {config.length + 1} tokens").hint(
                "lower `--length`, or give longer sequences"
            )
        if team is None:  # whoever else shared it out has chosen
            model.use_backend(config.backend)
        self._team = team or ALONE
        self._model = model.use_recompute(config.recompute)
        if config.fp8_linears and team is None:  # a team's members have done so before they shared the model
            use_fp8_linears(model, torch.device(config.device))
        if config.compile:
            compile_blocks(model, in_one_graph=not self._team.exchanges)
        self._config = config
        self._folder = folder
        self._train = train
        self._valid = valid if valid is not None and len(valid) and config.valid_windows else None
        self._data_identity = data_identity
        self._observer = observer
        self._device = torch.device(config.device)
        # on an accelerator, reading a number waits for the device: once for many steps
        self._reads_every_step = self._device.type == "cpu"
        self._optimizer = build_optimizer(model, config)
        self._updates = Updates(model, self._optimizer, config, self._team)
        self._checkpoints = Checkpoints(folder.checkpoints, keep_last=config.keep_last, team=self._team)
        self._step = 0
        self._saved_step = 0
        self._best: Best | None = None
        self._measured: list[_Measured] = []
        self._learned = False  # from any base
        flops = 3 * config.windows_per_step * sum(forward_flops(model.config, config.length).values())
        self._clock = Clock(self._device, config, flops_per_step=flops // self._team.processes)
        self._noise = NoiseScale()

    def restore(self) -> int:
        """Go back to the newest complete checkpoint and return its step; 0, with nothing changed, if there is none.

        Raises:
            Sh2Error: the run began with another configuration, model or data, or its metrics are damaged.
        """
        self._team.of_leader(self._clean)
        progress = self._checkpoints.newest(self._observer.note)
        self._team.of_leader(lambda: self._go_back_to(progress))
        if progress is not None:
            self._checkpoints.restore(progress.step, self._model, self._optimizer)
            self._step = self._saved_step = progress.step
            self._learned = self._team.of_leader(lambda: any(line["loss"] for line in read_lines(self._folder.metrics)))
            self._best = progress.best
        return self._step

    def _clean(self) -> None:
        self._checkpoints.clean()
        remove_leftovers(self._folder.path)

    def _go_back_to(self, progress: Progress | None) -> None:
        """Leave the folder as it was when the checkpoint to go on from was written."""
        if progress is not None:
            self._check_same_run(progress)
        keep_steps(self._folder.metrics, 0 if progress is None else progress.step)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Train to the last step, or until `should_stop` after a step; then save a checkpoint and the model.

        Raises:
            Sh2Error: the loss or the gradient is not finite, and nothing is saved after the last good checkpoint; or no
                base had any weight.
        """
        graphs = many_graphs() if self._config.compile else nullcontext()
        with _reproducible(self._config), graphs, self._writing(), self._loader() as loader, self._checkpoints:
            self._clock.begin(self._step)
            while self._step < self._config.steps and not self._team.any(should_stop()):
                self._checkpoints.check()
                self._step += 1
                with self._clock.work(), self._profiled():
                    self._measured.append(self._update(loader))
                self._after_update()
            self._write(self._fetch())
            if self._step == self._config.steps and not self._learned:
                raise Sh2Error(f"nothing was learned: no window of {self._step} steps holds a base of any weight").hint(
                    "give sequences of A, C, G and T, or raise `--lower-case-weight`"
                )
            if self._saved_step < self._step:
                self._save_checkpoint()
            self._checkpoints.save_model(self._model, self._folder.model)
            self._checkpoints.wait()
        return Outcome.FINISHED if self._step == self._config.steps else Outcome.STOPPED

    def _loader(self) -> Loader:
        windows = self._config.windows_per_step
        wanted = ((step * windows, windows) for step in range(self._step, self._config.steps))
        return Loader(self._train, wanted, pinned=self._device.type == "cuda")

    def _update(self, loader: Loader) -> _Measured:
        with self._clock.data():
            batch = loader.next()
        lr = learning_rate(self._step, self._config)
        numbers = self._updates.make(batch, lr=lr)
        first = float(batch.weights[: self._config.batch_size].sum(dtype=torch.float64))
        return _Measured(self._step, lr, numbers, (first, batch.weight))

    def _after_update(self) -> None:
        config, step = self._config, self._step
        last = step == config.steps
        log = last or _due(step, config.log_every)
        valid = self._valid is not None and (last or _due(step, config.valid_every))
        save = _due(step, config.save_every)
        if log or valid or save or self._reads_every_step:
            with self._clock.work():
                records = self._fetch()
            if valid:
                validation = self._validate()
                records[-1] = replace(
                    records[-1], valid_loss=validation.loss, valid_bits_per_base=validation.bits_per_base
                )
            self._write(records)
        if log and (speed := self._clock.report(step)):
            speed = replace(speed, noise_scale=self._noise.estimate())
            self._speed.append([json.dumps(asdict(speed))])
            self._observer.speed(speed)
        if self._filters and _due(step, config.filter_statistics):
            self._filters.append([json.dumps({"step": step, "filters": filter_statistics(self._model)})])
        if save:
            self._save_checkpoint()

    def _fetch(self) -> list[StepRecord]:
        """Read the numbers of the steps since the last time; those before a step that diverged are written."""
        records: list[StepRecord] = []
        for measured in self._measured:
            loss, base_nats, bases, norm, first_norm = measured.numbers.tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._write(records)
                raise self._diverged(measured.step, f"loss {loss}, gradient norm {norm}")
            first_weight, weight = measured.weights
            self._learned |= weight > 0
            self._noise.add(first_norm=first_norm, norm=norm, first_weight=first_weight, weight=weight)
            records.append(
                StepRecord(
                    step=measured.step,
                    loss=loss,
                    bits_per_base=base_nats / bases * NATS_TO_BITS if bases else None,
                    lr=measured.lr,
                    grad_norm=norm,
                    tokens=measured.step * self._config.windows_per_step * self._config.length,
                )
            )
        self._measured.clear()
        return records

    def _write(self, records: list[StepRecord]) -> None:
        self._metrics.append([record.to_json() for record in records])
        for record in records:
            self._observer.step(record)

    def _validate(self) -> Validation:
        assert self._valid is not None
        validation = validate(self._model, self._valid, self._config, self._team)
        if not math.isfinite(validation.loss):
            raise self._diverged(self._step, f"validation loss {validation.loss}")
        if self._best is None or validation.loss < self._best.valid_loss:
            self._best = Best(step=self._step, valid_loss=validation.loss)
            self._checkpoints.save_model(self._model, self._folder.best)
        return validation

    def _diverged(self, step: int, values: str) -> Sh2Error:
        self._checkpoints.wait()
        steps = self._checkpoints.steps()
        good = (
            f"the last good checkpoint is {self._checkpoints.path(steps[-1])}" if steps else "no checkpoint was saved"
        )
        return Sh2Error(f"training diverged at step {step}: {values}; {good}").hint(
            "train into another folder with a lower `--lr`, a longer `--warmup-fraction` or a lower `--clip`"
        )

    def _save_checkpoint(self) -> None:
        self._metrics.sync()
        progress = Progress(
            step=self._step,
            windows=self._step * self._config.windows_per_step,
            best=self._best,
            config=self._config.to_dict() | {"parallel": self._team.parallel},
            model=self._model.config.to_dict(),
            data=self._data_identity,
            torch=torch.__version__,
            evo=evo_version(),
        )
        self._checkpoints.save(self._model, self._optimizer, progress)
        self._saved_step = self._step

    def _check_same_run(self, saved: Progress) -> None:
        """Refuse a checkpoint of another run; warn where the bits may differ."""
        began = TrainConfig.from_dict(saved.config)  # of a run older than a field: its default, as it was then
        check_unchanged("train", began.to_dict(), self._config.to_dict())
        check_unchanged("model", saved.model, self._model.config.to_dict())
        check_unchanged("data", {"checksum": saved.data}, {"checksum": self._data_identity})
        for what, before, now in (
            *((name, getattr(began, name), getattr(self._config, name)) for name in ROUNDING),
            ("parallel", saved.config.get("parallel", ALONE.parallel), self._team.parallel),
            ("torch", saved.torch, torch.__version__),
            ("evo", saved.evo, evo_version()),
        ):
            if now != before:
                self._observer.note(
                    f"warning: the run began with {what} {before} and goes on with {now}: "
                    "its numbers can differ in the last bits from an uninterrupted run's"
                )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with ExitStack() as files:
            folder = self._folder
            paths = folder.metrics, folder.speed, *([folder.filters] if self._config.filter_statistics else [])
            lines = JsonLines if self._team.leads else NoLines
            self._metrics, self._speed, *others = (files.enter_context(closing(lines(path))) for path in paths)
            self._filters = others[0] if others else None
            yield

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        if self._step != self._config.profile or not self._team.leads:
            yield
            return
        path = self._folder.profile(self._step)
        with profiled(path, self._device):
            yield
        self._observer.note(f"the trace of step {self._step} is {path}: open it at https://ui.perfetto.dev")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _reproducible(config: TrainConfig) -> Iterator[None]:
    """Ask torch for the same bits every time; on the CPU only, where it costs nothing."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or config.device == "cpu")
    settings.fill_uninitialized_memory = False
    torch.set_num_threads(config.threads or threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill
        torch.set_num_threads(threads)
