"""Passes of an update, and that a recorded one is the same as one that is launched."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sh2.model import StripedHyena2
from sh2.train import passes
from sh2.train.compilation import compile_blocks, many_graphs
from sh2.train.config import Precision, TrainConfig
from sh2.train.fp8 import use_fp8_linears
from sh2.train.loader import HostBatch
from sh2.train.optimizer import build_optimizer, optimizer_tensors
from sh2.train.team import ALONE
from sh2.train.update import Updates
from tests.kernels.definitions import relative_error
from tests.sh2.models import TINY
from tests.sh2.test_train_update import RandomWindows

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself

UPDATES = 6


def made(
    config: TrainConfig, *, records: bool, model: StripedHyena2, lr: float = 1e-2
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """The numbers of some updates, and what the optimizer knows after them: means of gradients."""
    optimizer = build_optimizer(model, config)
    updates = Updates(model, optimizer, config, ALONE)
    updates.passes.records = records
    source, numbers = RandomWindows(config.length), []
    for number in range(UPDATES):
        windows = source.batch(number * config.windows_per_step, config.windows_per_step)
        if number == UPDATES - 2:
            windows.weights[:] = 0
        numbers.append(updates.make(HostBatch.of(windows, pinned=config.device == "cuda"), lr=lr))
    return torch.stack(numbers).tolist(), optimizer_tensors(model, optimizer)


@pytest.fixture
def replays(monkeypatch):
    """Stands for a CUDA graph where there is none: runs the pass again, and puts what it gives where it gave it first.

    How often each was replayed.
    """
    replayed = []

    class Graph:
        def __init__(self, run, trained):
            self._run, self._trained, self.number = run, trained, len(replayed)
            self._adds_up = trained[0].grad is not None
            self.sums = run()
            self._gradients = [one.grad for one in trained]
            for gradient in self._gradients:  # a recording runs nothing
                gradient.fill_(0 if self._adds_up else torch.nan)
            replayed.append(0)

        def replay(self):
            replayed[self.number] += 1
            for one, gradient in zip(self._trained, self._gradients, strict=True):
                assert one.grad is gradient
                one.grad = gradient.clone() if self._adds_up else None
            self.sums.copy_(self._run())
            for one, gradient in zip(self._trained, self._gradients, strict=True):
                gradient.copy_(one.grad)
                one.grad = gradient

    def recorded(run, device):
        model = run.func.__self__._model
        graph = Graph(run, [one for one in model.parameters() if one.requires_grad])
        return graph.sums, graph

    monkeypatch.setattr(passes, "_recorded", recorded)
    return replayed


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_replayed_pass_is_a_launched_one(replays: list[int], accumulation: int) -> None:
    config = TrainConfig(steps=9, length=37, batch_size=2, accumulation=accumulation)
    one, two = StripedHyena2(TINY, seed=3), StripedHyena2(TINY, seed=3)
    numbers, _ = made(config, records=False, model=one)
    assert not replays
    again, _ = made(config, records=True, model=two)
    assert replays == [(UPDATES - 2) * accumulation]
    assert again == numbers
    assert numbers[-2][:3] == [0, 0, 0]
    for (name, launched), replayed in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(launched, replayed), name


def test_what_is_not_trained_stays(replays: list[int]) -> None:
    config = TrainConfig(steps=9, length=16, batch_size=2)
    model = StripedHyena2(TINY)
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.clone()
    made(config, records=True, model=model)
    assert replays == [UPDATES - 2]
    assert model.embedding.weight.grad is None
    assert torch.equal(model.embedding.weight, before)


def test_a_pass_that_cannot_be_recorded_is_launched(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def recorded(run, device):
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(passes, "_recorded", recorded)
    config = TrainConfig(steps=9, length=16, batch_size=2)
    numbers, _ = made(config, records=False, model=StripedHyena2(TINY, seed=3))
    with caplog.at_level(logging.WARNING):
        again, _ = made(config, records=True, model=StripedHyena2(TINY, seed=3))
    assert again == numbers
    assert [record.getMessage() for record in caplog.records] == [
        "training launches every kernel: a pass could not be recorded as a CUDA graph: "
        "operation not permitted when stream is capturing"
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("how", ["eager", "compiled", "fp8", "recompute"])
def test_gpu_a_recorded_pass_has_the_numbers_of_a_launched_one(how: str, accumulation: int, caplog) -> None:
    config = TrainConfig(
        steps=9, length=512, batch_size=2, accumulation=accumulation, device="cuda", precision=Precision.BF16
    )

    def model() -> StripedHyena2:
        torch.manual_seed(3)
        one = (
            StripedHyena2(replace(TINY, width=128, mlp_width=256))
            .cuda()
            .use_recompute("full" if how == "recompute" else "none")
        )
        if how == "fp8":
            use_fp8_linears(one, torch.device("cuda"))
        if how in ("compiled", "fp8"):
            compile_blocks(one)
        return one

    with many_graphs(), caplog.at_level(logging.WARNING, logger="sh2"):
        # a small rate: sums in another order, as attention takes them, must not lead elsewhere
        numbers, launched = made(config, records=False, model=model(), lr=1e-6)
        again, recorded = made(config, records=True, model=model(), lr=1e-6)
    assert not [record for record in caplog.records if record.name.startswith("sh2")]
    torch.testing.assert_close(torch.tensor(again), torch.tensor(numbers), rtol=2e-3, atol=1e-6)
    for name, mean in recorded.items():
        assert relative_error(mean, launched[name]) < 2e-2, name
