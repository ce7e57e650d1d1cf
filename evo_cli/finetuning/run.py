"""`evo finetune` from a request to its folder: examples, embeddings, the head, the model if it is trained, metrics.

RUN/head.safetensors     the head, and what it belongs to
RUN/model                the trained model, adapters merged; a head alone belongs to the model it was given
RUN/adapter.safetensors  the adapters alone
RUN/metrics.tsv          how well it does on the parts that it was not trained on
RUN/run.json             what made it
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.labelled import Example, read_examples, split_examples
from data.store import Split
from evo_cli.finetuning.metrics import COLUMNS, Measure, measure
from evo_cli.finetuning.vectors import Vectors
from evo_cli.inference import BackendName, Precision, open_replicas, resolve_devices, say, warn
from evo_cli.outputs.metadata import Run, describe_run
from evo_cli.progress import counter
from evo_cli.training.processes import one_voice
from sh2.checkpoint import load, save_model
from sh2.checkpoint.adapters import save_adapters
from sh2.checkpoint.source import open_model
from sh2.config import Lora
from sh2.errors import Sh2Error
from sh2.heads import Head, Targets, Task, fit_head, save_head, task_of
from sh2.lora import add_adapters
from sh2.parallel.processes import find_place
from sh2.reading.sites import find_sites
from sh2.recompute import Recompute
from sh2.tokens import as_rows
from sh2.train.config import Precision as TrainPrecision
from sh2.train.config import TrainConfig, read_value
from sh2.train.finetune import Epoch, Labelled, finetune
from sh2.train.folder import RunFolder
from sh2.train.records import write_atomically, write_json

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas

HEAD = "head.safetensors"


class Trained(StrEnum):
    """What is trained."""

    HEAD = "head"
    ADAPTERS = "adapters"
    ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRequest:
    """What is wanted of `evo finetune`. task: None is told from the labels. layer: None is at three quarters."""

    sequences: Path
    labels: Path | None
    output: Path
    task: Task | None
    layer: str | None
    pooling: str
    trained: Trained
    lora: Lora
    epochs: int
    lr: float
    batch_size: int
    valid: float
    test: float
    seed: int
    max_tokens: int
    recompute: str
    overwrite: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The model and where it runs."""

    model: str
    device: str
    precision: Precision
    backend: BackendName

    def open(self) -> "Replicas":
        """Load it."""
        return open_replicas(self.model, self.device, self.precision, self.backend)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Data:
    """The examples by part, and their labels as numbers."""

    examples: Mapping[Split, Sequence[Example]]
    targets: Mapping[Split, Targets]

    def texts(self, split: Split) -> list[bytes]:
        """The sequences of a part."""
        return [example.sequence for example in self.examples[split]]


def run_finetune(request: FinetuneRequest, place: Place) -> list[Measure]:
    """Train into a folder; return what is measured on validation and test.

    Raises:
        DataError: the examples cannot be read or divided.
        Sh2Error: the labels, the model or the folder do not allow it, or training diverged.
    """
    with one_voice(find_place(os.environ)) as meeting:
        if meeting.place is not None:
            raise Sh2Error("a head, and a model with it, are trained in one process").hint("start without torchrun")
    settings = _settings(request, place)
    data = read_data(request)
    config = open_model(place.model).config
    word = request.layer if request.layer is not None else str(config.num_layers * 3 // 4)
    (layer,) = find_sites(config, [word])
    folder = RunFolder(request.output)
    with folder.locked():
        _make_room(request.output, overwrite=request.overwrite)
        vectors = Vectors(layer=layer, pooling=request.pooling, max_tokens=request.max_tokens)
        replicas = place.open()
        head = _fit(replicas, data, vectors)
        if request.trained is not Trained.HEAD:
            del replicas  # the memory is for the one that is trained
            head = _train(request, place, settings, data, head, folder)
            place = replace(place, model=str(folder.model))
            replicas = place.open()
        run = _describe(request, place, replicas, layer)
        name = str(Path(place.model).absolute()) if Path(place.model).exists() else place.model
        save_head(head, request.output / HEAD, model=name, weights=run.identity["model"]["weights"])
        measures = _measure(replicas, data, head, vectors, request.seed)
        lines = ["\t".join(cells) for cells in (COLUMNS, *(one.row() for one in measures))]
        write_atomically(request.output / "metrics.tsv", ("\n".join(lines) + "\n").encode())
        write_json(folder.description, {**asdict(run), "command": shlex.join(["evo", *sys.argv[1:]])})
    return measures


def read_data(request: FinetuneRequest) -> Data:
    """Read, divide and number the examples, and say what they are."""
    examples = read_examples(request.sequences, request.labels, warn)
    task = request.task or task_of([example.label for example in examples])
    parts = split_examples(examples, valid=request.valid, test=request.test, seed=request.seed)
    train = Targets.of([example.label for example in parts[Split.TRAIN]], task)
    if bool((train.values == train.values[0]).all()):
        raise Sh2Error(f"all {len(train.values):,} examples to train on have the label {parts[Split.TRAIN][0].label}")
    targets = {
        split: Targets.of([example.label for example in part], task, train.classes) for split, part in parts.items()
    }
    sizes = ", ".join(f"{len(part):,} {split.value}" for split, part in parts.items())
    what = f"{len(train.classes)} classes ({', '.join(train.classes[:6])})" if train.classes else "numbers"
    say(f"data: {len(examples):,} examples, {sizes}; {task}: {what}{'' if request.task else ' (as the labels look)'}")
    return Data(examples=parts, targets=targets)


def _make_room(output: Path, *, overwrite: bool) -> None:
    there = [name for name in (HEAD, "model", "adapter.safetensors", "metrics.tsv") if (output / name).exists()]
    if there and not overwrite:
        raise Sh2Error(f"{output} already holds `{there[0]}`").hint("give another folder with `-o`, or --overwrite")
    for name in there:
        shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()


def _fit(replicas: "Replicas", data: Data, vectors: Vectors) -> Head:
    with counter("embed", unit="bases") as advance:
        train, valid = (
            torch.from_numpy(vectors.together(replicas, data.texts(split), advance))
            for split in (Split.TRAIN, Split.VALID)
        )
    head, loss = fit_head(
        train,
        data.targets[Split.TRAIN],
        valid,
        data.targets[Split.VALID],
        layer=vectors.layer,
        pooling=vectors.pooling,
    )
    say(f"head on {vectors.layer}, {vectors.pooling}: validation loss {loss:.4g}")
    return head


def _settings(request: FinetuneRequest, place: Place) -> TrainConfig:
    """How a model is trained with its head.

    Raises:
        Sh2Error: a setting is not allowed.
    """
    device = resolve_devices(place.device)[0]
    return TrainConfig(
        steps=1,  # of the epochs, whatever they are
        batch_size=request.batch_size,
        lr=request.lr,
        seed=request.seed,
        device=device,
        precision=TrainPrecision.FP32 if device == "cpu" else TrainPrecision.BF16,
        recompute=read_value("train", "recompute", Recompute, request.recompute),
    )


def _train(
    request: FinetuneRequest, place: Place, settings: TrainConfig, data: Data, head: Head, folder: RunFolder
) -> Head:
    """Train the model with the head, and write it."""
    device = settings.device
    model = load(place.model, device=device, dtype=torch.float32).use_precision("fp32").use_backend(place.backend)
    if request.trained is Trained.ADAPTERS:
        add_adapters(model, request.lora, seed=request.seed)
    train, valid = (
        Labelled(
            ids=[ids.astype(np.int64) for ids in as_rows(data.texts(split), model.config.vocab_size)],
            targets=data.targets[split],
        )
        for split in (Split.TRAIN, Split.VALID)
    )
    model.use_recompute(settings.recompute)
    epochs: list[Epoch] = []
    head = finetune(model, head, train, valid, settings, epochs=request.epochs, told=lambda one: _tell(one, epochs))
    say(f"kept: the model after epoch {min(epochs, key=lambda epoch: epoch.valid_loss).number}")
    save_model(model, folder.model)
    if request.trained is Trained.ADAPTERS:
        save_adapters(model, folder.adapter)
    return head


def _tell(epoch: Epoch, epochs: list[Epoch]) -> None:
    epochs.append(epoch)
    train = "" if epoch.train_loss is None else f"training loss {epoch.train_loss:.4g}, "
    say(f"epoch {epoch.number}: {train}validation loss {epoch.valid_loss:.4g}")


def _measure(replicas: "Replicas", data: Data, head: Head, vectors: Vectors, seed: int) -> list[Measure]:
    measures: list[Measure] = []
    for split in (Split.VALID, Split.TEST):
        with counter("embed", unit="bases") as advance:
            x_nd = torch.from_numpy(vectors.together(replicas, data.texts(split), advance))
        outputs = head.outputs(x_nd).double().numpy()
        values = data.targets[split].values.double().numpy()
        measures += measure(split, outputs, values, classes=len(head.classes), seed=seed)
    return measures


def _describe(request: FinetuneRequest, place: Place, replicas: "Replicas", layer: str) -> Run:
    options = {
        name: getattr(request, name) for name in ("pooling", "trained", "epochs", "lr", "batch_size", "seed")
    } | {"layer": layer, "valid": request.valid, "test": request.test}
    if request.trained is Trained.ADAPTERS:
        options["lora"] = asdict(request.lora)
    return describe_run(
        "finetune",
        replicas,
        model=place.model,
        backend=place.backend,
        inputs={"sequences": request.sequences, "labels": request.labels},
        options=options,
    )
