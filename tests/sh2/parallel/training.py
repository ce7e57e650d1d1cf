"""Training in several processes, in a module that these can import, and the same in one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from sh2.config import DEFAULT_WINDOW, FeedForward, ModelConfig
from sh2.lora import add_adapters
from sh2.model import StripedHyena2
from sh2.parallel.processes import Place, Processes
from sh2.train.checkpoints import Checkpoints
from sh2.train.config import TrainConfig
from sh2.train.copies import Copies
from sh2.train.folder import RunFolder
from sh2.train.fp8 import use_fp8_linears
from sh2.train.loop import Trainer
from sh2.train.team import ALONE
from sh2.train.together import Together

LENGTH = 128
SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "accumulation": 2,
    "length": LENGTH,
    "lr": 3e-3,
    "clip": 3.0,  # below some norms of gradients and above others
    "valid_every": 3,
    "valid_windows": 5,
    "save_every": 2,
    "threads": 1,
    "peak_tflops": 1.0,
}
STRIPED = ModelConfig(
    width=32,
    layout="SML*",
    num_heads=4,
    mlp_width=36,
    se_groups=4,
    mr_groups=8,
    mr_taps=8,
    num_modes=4,
    mr_window=DEFAULT_WINDOW,
)
MODELS = {
    "striped": STRIPED,
    "biases, shared keys, untied, hyena_se feed-forward": replace(
        STRIPED,
        layout="*ML",
        num_heads=8,
        queries_per_kv_head=2,
        input_bias=True,
        featurizer_bias=True,
        se_skip=True,
        tied_embeddings=False,
        feed_forward=FeedForward.HYENA_SE,
    ),
}


@dataclass(frozen=True)
class Batch:
    tokens: np.ndarray
    weights: np.ndarray
    document_starts: np.ndarray


class Windows:
    """Windows of bases with a pattern in them, unevenly weighted."""

    def __len__(self) -> int:
        return 100

    def batch(self, first: int, count: int) -> Batch:
        rows = [np.random.default_rng(number) for number in range(first, first + count)]
        pattern = np.tile(np.frombuffer(b"ACGTTGCAGG", np.uint8), LENGTH)
        tokens = np.stack([np.roll(pattern, row.integers(10))[: LENGTH + 1] for row in rows])
        other = np.stack([row.choice(np.frombuffer(b"ACGT", np.uint8), LENGTH + 1) for row in rows])
        mask = np.stack([row.random(LENGTH + 1) < 0.2 for row in rows])
        weights = np.stack([row.random(LENGTH, np.float32) * (row.random(LENGTH) > 0.2) for row in rows])
        return Batch(np.where(mask, other, tokens), weights.astype(np.float32), np.zeros(tokens.shape, bool))


class Watcher:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, record: object) -> None:
        pass

    def speed(self, record: object) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run: how processes share it, and what else it is told."""

    parallel: str
    cp_method: str = "state"
    cp_attention: str = "ring"
    cp_sharding: str = "contiguous"
    model: str = "striped"
    recompute: str = "none"
    compile: bool = False
    precision: str = "fp32"
    fp8_linears: bool = False
    freeze: tuple[str, ...] = ()
    lora_rank: int = 0
    resumes: str | None = None  # the folder of a run that another stopped
    stops_after: int | None = None  # updates

    @property
    def name(self) -> str:
        return self.resumes or "-".join(str(value) for value in vars(self).values() if value)

    def config(self, device: str = "cpu") -> TrainConfig:
        own = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self).items()
            if key not in ("model", "resumes", "stops_after")
        }
        return TrainConfig.from_dict({**SETTINGS, **own, "device": device})


def build(
    case: Case, processes: Processes | None, device: str = "cpu"
) -> tuple[StripedHyena2, Together | Copies | None]:
    """A model, of which processes have shares without values; or, with adapters, each has all of it."""
    config = case.config(device)
    if processes is None or config.lora is not None:
        model = StripedHyena2(MODELS[case.model], seed=config.seed).to(device)
        if config.lora is not None:
            add_adapters(model, config.lora, seed=config.seed)
        return model, None if processes is None else Copies(config, processes)
    with torch.device("meta"):
        model = StripedHyena2(MODELS[case.model])
    return model, Together(model, config, processes)


def train(case: Case, folder: Path, processes: Processes | None, device: str = "cpu") -> None:
    """Run a case in the folder of its name; the weights that it began from are `initial` there."""
    config, run = case.config(device), RunFolder(folder / case.name)
    run.path.mkdir(exist_ok=True, parents=True)
    model, team = build(case, processes, device)
    if isinstance(team, Together):
        team.initialize(config.seed)
    with Checkpoints(run.checkpoints, keep_last=1, team=team or ALONE) as first:
        first.save_model(model, run.path / "initial")
    watcher = Watcher()
    trainer = Trainer(
        model,
        config,
        folder=run,
        train=Windows(),
        valid=Windows(),
        data_identity="data",
        observer=watcher,
        team=team,
    )
    trainer.restore()
    updates = iter(range(config.steps if case.stops_after is None else case.stops_after))
    trainer.run(lambda: next(updates, None) is None)
    if processes is None or processes.leads:
        (run.path / "notes.json").write_text(json.dumps(watcher.notes))


def train_emulated(case: Case, folder: Path, processes: Processes | None) -> None:
    """Likewise on a CPU, which has no FP8 products."""
    emulated = partial(use_fp8_linears, emulate=True)
    with patch("sh2.train.together.use_fp8_linears", emulated), patch("sh2.train.loop.use_fp8_linears", emulated):
        train(case, folder, processes)


def train_cases_emulated(cases: Sequence[Case], folder: Path) -> None:
    """`train_cases` with FP8 products."""
    processes = group()
    for case in cases:
        train_emulated(case, folder, processes)


def train_cases(cases: Sequence[Case], folder: Path, device: str) -> None:
    """Train one case after the other, in every process of a group."""
    processes = group()
    for case in cases:
        train(case, folder, processes, device)


def group() -> Processes:
    """All processes of a group, seen from one of them."""
    rank = dist.get_rank()
    place = Place(rank=rank, ranks=dist.get_world_size(), local_rank=rank, address="localhost", port=0)
    return Processes(place, dist.HashStore())


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
