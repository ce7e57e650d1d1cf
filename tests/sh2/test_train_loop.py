"""The training loop on random bases: resumed runs, stops, divergence, and what a run writes down."""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train.config import TrainConfig
from sh2.train.folder import RunFolder
from sh2.train.loop import Outcome, Trainer

TINY = ModelConfig(width=16, layout="SML*", num_heads=2, mlp_width=24, se_groups=2, mr_groups=2, mr_taps=8, num_modes=4)
SETTINGS = {
    "steps": 12,
    "batch_size": 2,
    "length": 16,
    "valid_every": 4,
    "valid_windows": 3,
    "save_every": 5,
    "threads": 1,
}


@dataclass(frozen=True)
class Batch:
    tokens: np.ndarray
    weights: np.ndarray
    document_starts: np.ndarray


class Windows:
    """Windows of bases that repeat with a period of 4, each from another place."""

    def __init__(self, windows=100, weight=1.0, length=16):
        self.windows, self.weight, self.length = windows, weight, length

    def __len__(self):
        return self.windows

    def batch(self, first, count):
        rolls = [np.random.default_rng(number).integers(4) for number in range(first, first + count)]
        tokens = np.stack([np.roll(np.frombuffer(b"AACG" * 99, np.uint8), roll)[: self.length + 1] for roll in rolls])
        weights = np.full((count, self.length), self.weight, np.float32)
        return Batch(tokens, weights, np.zeros(tokens.shape, bool))


class Watcher:
    def __init__(self):
        self.steps, self.speeds, self.notes = [], [], []

    def step(self, record):
        self.steps.append(record)

    def speed(self, record):
        self.speeds.append(record)

    def note(self, text):
        self.notes.append(text)


def trainer(folder, *, train=None, valid=None, data="data", watcher=None, model=None, seed=0, **settings):
    folder.mkdir(exist_ok=True)
    config = TrainConfig.from_dict({**SETTINGS, **settings})
    return Trainer(
        model or StripedHyena2(TINY, seed=seed),
        config,
        folder=RunFolder(folder),
        train=Windows() if train is None else train,
        valid=Windows() if valid is None else valid,
        data_identity=data,
        observer=watcher or Watcher(),
    )


def contents(folder):
    """Everything that must be equal in an uninterrupted run and in a resumed one."""
    checkpoint = folder / "checkpoints" / "step_00000012"
    names = ["metrics.jsonl", "model/model.safetensors", "best/model.safetensors"]
    return [(folder / name).read_bytes() for name in names] + [(checkpoint / "optimizer.safetensors").read_bytes()]


def stopping_after(calls):
    remaining = iter(range(calls))
    return lambda: next(remaining, None) is None


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with RunFolder(folder).locked():
        assert trainer(folder).run() is Outcome.FINISHED
    return folder


def test_training_learns_and_writes_a_line_for_every_step(whole_run):
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]

    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "valid_loss" in line] == [4, 8, 12]
    assert lines[-1]["tokens"] == 12 * 2 * 16
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[0]["bits_per_base"] == pytest.approx(lines[0]["loss"] / math.log(2))
    assert all(line["grad_norm"] > 0 for line in lines)


def test_checkpoints_are_the_last_ones_and_the_model_is_the_last_step(whole_run):
    assert sorted(path.name for path in (whole_run / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
    saved = whole_run / "checkpoints" / "step_00000012" / "model" / "model.safetensors"
    assert saved.read_bytes() == (whole_run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stop_after", [0, 1, 5, 7, 11])
def test_a_run_stopped_and_resumed_equals_the_whole_one_byte_for_byte(tmp_path, whole_run, stop_after):
    assert trainer(tmp_path).run(stopping_after(stop_after)) is Outcome.STOPPED
    second = trainer(tmp_path, seed=99)  # other first weights: those of the checkpoint must win

    if stop_after:
        assert second.restore() == stop_after
        second.run()
    else:
        trainer(tmp_path).run()

    assert contents(tmp_path) == contents(whole_run)


def test_numbers_read_once_for_many_steps_are_the_same(tmp_path, whole_run):
    run = trainer(tmp_path, log_every=3)
    run._reads_every_step = False  # as on an accelerator
    run.run()

    assert contents(tmp_path) == contents(whole_run)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 4, 5, 8, 10, 11])
def test_a_run_killed_and_resumed_equals_the_whole_one_byte_for_byte(tmp_path, whole_run, killed_at):
    class Dying(Watcher):
        def step(self, record):
            if record.step == killed_at:
                raise KilledError

    with pytest.raises(KilledError):
        trainer(tmp_path, watcher=Dying()).run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')

    again = trainer(tmp_path)
    assert again.restore() == (killed_at - 1) // 5 * 5
    assert again.run() is Outcome.FINISHED
    assert contents(tmp_path) == contents(whole_run)


def test_a_finished_run_resumed_changes_nothing(tmp_path, whole_run):
    trainer(tmp_path).run()
    again = trainer(tmp_path)

    assert again.restore() == 12
    assert again.run() is Outcome.FINISHED
    assert contents(tmp_path) == contents(whole_run)


@pytest.mark.parametrize("victim", ["model/model.safetensors", "optimizer.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_is_taken(tmp_path, whole_run, victim, damage):
    trainer(tmp_path).run()
    path = tmp_path / "checkpoints" / "step_00000012" / victim
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])

    watcher = Watcher()
    again = trainer(tmp_path, watcher=watcher)

    assert again.restore() == 10
    assert f"step_00000012 is damaged: {victim}" in watcher.notes[0]
    assert "kept as step_00000012.damaged, going back to the checkpoint before it" in watcher.notes[0]
    again.run()
    assert contents(tmp_path) == contents(whole_run)


def test_half_written_folders_are_ignored_and_removed(tmp_path):
    trainer(tmp_path).run(stopping_after(5))
    partial = tmp_path / "checkpoints" / ".step_00000010.partial-123"
    (partial / "model").mkdir(parents=True)
    (tmp_path / ".best.partial-123").mkdir()

    assert trainer(tmp_path).restore() == 5
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]
    assert not (tmp_path / ".best.partial-123").exists()


def test_the_best_checkpoint_is_kept(tmp_path):
    class Worsening(Windows):
        calls = 0

        def batch(self, first, count):
            batch = super().batch(first, count)
            self.calls += 1
            tokens = (batch.tokens + np.uint8(20 * (self.calls > 2))).astype(np.uint8)
            return Batch(tokens, batch.weights, batch.document_starts)

    trainer(tmp_path, valid=Worsening(), valid_every=2, save_every=2, keep_last=1, batch_size=3, lr=0.1).run()

    losses = [json.loads(line).get("valid_loss", 99) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = losses.index(min(losses)) + 1
    kept = [int(path.name[5:]) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert best < 12
    assert kept == [best, 12]


def test_the_result_does_not_depend_on_accumulation(tmp_path, whole_run):
    trainer(tmp_path / "a", batch_size=8, accumulation=1).run()
    trainer(tmp_path / "b", batch_size=2, accumulation=4).run()

    for name in ("loss", "grad_norm", "bits_per_base"):
        one, other = (
            [json.loads(line)[name] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
            for run in "ab"
        )
        assert one == pytest.approx(other, rel=2e-4)


def test_a_batch_without_weight_gives_zero_loss_and_no_nan(tmp_path):
    model = StripedHyena2(TINY)
    with pytest.raises(Sh2Error, match=r"nothing was learned: no window of \d+ steps holds a base of any weight"):
        trainer(tmp_path, train=Windows(weight=0.0), valid_windows=0, model=model).run()

    assert not (tmp_path / "model").exists()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["loss"], line["grad_norm"]) == (0.0, 0.0)
    assert "bits_per_base" not in line
    assert all(parameter.isfinite().all() for parameter in model.parameters())

    again = trainer(tmp_path, train=Windows(weight=0.0), valid_windows=0)
    assert again.restore() > 0
    with pytest.raises(Sh2Error, match="nothing was learned"):
        again.run()


def test_a_diverged_run_stops_and_names_the_step_and_the_last_good_checkpoint(tmp_path):
    class Poisoned(Windows):
        def batch(self, first, count):
            batch = super().batch(first, count)
            poisoned = 2 * (7 - 1)
            if first <= poisoned < first + count:
                batch.weights[poisoned - first, 0] = np.inf
            return batch

    with pytest.raises(Sh2Error, match=r"training diverged at step 7: loss nan, .* is .*step_00000005") as caught:
        trainer(tmp_path, train=Poisoned()).run()

    assert "lower `--lr`" in caught.value.__notes__[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "cannot resume with train field `lr` changed from 0.001 to 0.5"),
        ({"steps": 13}, "cannot resume with train field `steps` changed from 12 to 13"),
        ({"data": "other"}, "cannot resume with data field `checksum` changed from 'data' to 'other'"),
        (
            {"model": StripedHyena2(ModelConfig.from_dict({**TINY.to_dict(), "layout": "S"}))},
            r"cannot resume with model field `layout` changed from 'SML\*' to 'S'",
        ),
    ],
)
def test_a_run_is_not_resumed_as_another_one(tmp_path, change, message):
    trainer(tmp_path).run(stopping_after(1))

    with pytest.raises(Sh2Error, match=message):
        trainer(tmp_path, **change).restore()


def test_a_run_older_than_a_field_is_resumed_with_its_default(tmp_path):
    trainer(tmp_path).run(stopping_after(1))
    path = tmp_path / "checkpoints" / "step_00000001" / "trainer.json"
    content = json.loads(path.read_text())
    del content["state"]["config"]["freeze"], content["state"]["config"]["lora_rank"]
    text = json.dumps([content["files"], content["state"]], sort_keys=True)
    path.write_text(json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}))

    assert trainer(tmp_path).restore() == 1
    with pytest.raises(Sh2Error, match=r"train field `freeze` changed from \[\] to \['norms'\]"):
        trainer(tmp_path, freeze=["norms"]).restore()


def test_another_number_of_threads_is_warned_about(tmp_path):
    trainer(tmp_path, threads=1).run(stopping_after(1))
    watcher = Watcher()

    trainer(tmp_path, threads=2, watcher=watcher).restore()

    assert watcher.notes == [
        "warning: the run began with threads 1 and goes on with 2: "
        "its numbers can differ in the last bits from an uninterrupted run's"
    ]


def test_metrics_that_lack_steps_of_the_checkpoint_are_refused(tmp_path):
    trainer(tmp_path).run(stopping_after(5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]))

    with pytest.raises(Sh2Error, match=r"metrics.jsonl ends at step 3, but the checkpoint is of step 5"):
        trainer(tmp_path).restore()


def test_no_training_windows_are_refused(tmp_path):
    with pytest.raises(Sh2Error, match="the training data holds no window of 17 tokens"):
        trainer(tmp_path, train=Windows(windows=0))


def test_without_validation_windows_there_is_no_validation(tmp_path):
    trainer(tmp_path, valid=Windows(windows=0)).run()

    assert "valid" not in (tmp_path / "metrics.jsonl").read_text()
    assert not (tmp_path / "best").exists()


def test_speed_is_written_apart_every_few_steps(tmp_path):
    watcher = Watcher()
    trainer(tmp_path, watcher=watcher, log_every=5).run()

    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12] == [record.step for record in watcher.speeds]
    assert all(line["tokens_per_second"] > 0 and line["step_seconds"] > line["data_seconds"] for line in lines)


def test_bf16_trains_over_float32_weights(tmp_path):
    model = StripedHyena2(TINY)
    trainer(tmp_path, precision="bf16", model=model, steps=3).run()

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_documents_are_reset_when_asked(tmp_path):
    """With a reset at every token, each is predicted from nothing but itself, wherever it stands."""

    class Everywhere(Windows):
        def batch(self, first, count):
            batch = super().batch(first, count)
            return Batch(batch.tokens, batch.weights, np.ones(batch.tokens.shape, bool))

    seen = {}

    class Spy(StripedHyena2):
        def hidden(self, ids_BL, state=None, *, document_starts_BL=None):
            seen["starts"] = document_starts_BL
            return super().hidden(ids_BL, state, document_starts_BL=document_starts_BL)

    trainer(tmp_path, train=Everywhere(), model=Spy(TINY), steps=1, valid_windows=0, reset_documents=True).run()

    assert seen["starts"].shape == (2, 16)
    assert seen["starts"].all()


def test_a_second_process_is_kept_out(tmp_path):
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(Sh2Error, match="another process is training into"),
        RunFolder(tmp_path).locked(),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(Sh2Error, match=r"cannot write to the run folder .*/file/run: Not a directory"),
        RunFolder(tmp_path / "file" / "run").locked(),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_on_a_gpu_stops_and_goes_on(tmp_path, precision):
    settings = {"device": "cuda", "precision": precision}
    trainer(tmp_path, model=StripedHyena2(TINY).cuda(), **settings).run(stopping_after(7))
    again = trainer(tmp_path, model=StripedHyena2(TINY).cuda(), **settings)

    assert again.restore() == 7
    assert again.run() is Outcome.FINISHED
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]
