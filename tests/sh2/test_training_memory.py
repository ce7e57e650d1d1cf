"""What a forward keeps and what its backward takes, against tensors of every size that are counted and not made."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sh2.bench.models import random_model
from sh2.config import LINEAR_LAYERS, FeedForward, Lora, ModelConfig
from sh2.lora import add_adapters
from sh2.model import StripedHyena2
from sh2.planning.accounting import Numbers, count_adapters, count_parameters
from sh2.planning.plan import Plan, Task, predict_memory
from sh2.planning.training_memory import saved_bytes, training_peak_bytes
from sh2.presets import preset
from sh2.recompute import Recompute
from sh2.train.config import Precision, TrainConfig
from sh2.train.loader import HostBatch
from sh2.train.loss import loss_sums
from sh2.train.optimizer import build_optimizer
from sh2.train.team import ALONE
from sh2.train.update import Updates
from sh2.train.windows import _in_pieces, _sums
from tests.sh2.memory import counting
from tests.sh2.test_train_update import RandomWindows

SHAPES = {
    "nano": (preset("nano"), 8, 1024),
    "SE for feed-forward": (replace(preset("debug"), feed_forward=FeedForward.HYENA_SE), 2, 4096),
    "long": (replace(preset("350m"), layout="SM*L"), 2, 20_000),
}
NUMBERS = [("bf16", True), ("bf16", False), ("fp32", True)]  # and whether kernels are fused


def measured(
    config: ModelConfig,
    rows: int,
    length: int,
    recompute: Recompute,
    numbers: Numbers,
    *,
    backward: bool = True,
    lora: Lora | None = None,
) -> tuple[int, int]:
    """What is kept after a forward, and the most that it and its backward take."""
    with counting(config, torch.float32) as (live, model):
        if lora is not None:
            add_adapters(model, lora, seed=0)
        model.use_backend("triton" if numbers.fused else "reference").use_recompute(recompute)
        ids, weights = torch.zeros(rows, length, dtype=torch.int64), torch.ones(rows, length)
        live.most = before = live.now
        with torch.autocast("cpu", torch.bfloat16, enabled=numbers.dtype == "bf16"):
            x_BLD = model.whole(ids)
            sums = _in_pieces(partial(_sums, model, loss_sums), x_BLD, ids, weights)
            del x_BLD
        kept = live.now - before
        if backward:
            sums.weighted_nats.backward()
        return kept, live.most - before


@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize(("dtype", "fused"), NUMBERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_training_takes_what_tensors_take(shape: str, dtype: str, fused: bool, recompute: Recompute) -> None:
    (config, rows, length), numbers = SHAPES[shape], Numbers(dtype=dtype, fused=fused)
    kept, most = measured(config, rows, length, recompute, numbers)
    # autocast's copies of the matrices are kept too, where they are not made again
    copies = 2 * count_parameters(config) if dtype == "bf16" and recompute is Recompute.NONE else 0
    assert saved_bytes(config, rows * length, numbers, recompute) + copies == pytest.approx(kept, rel=0.03)
    predicted = training_peak_bytes(config, rows * length, numbers, recompute)
    assert 0.9 * most < predicted < 1.2 * most


@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_take_what_tensors_take(shape: str, dtype: str, recompute: Recompute) -> None:
    (config, rows, length), numbers = SHAPES[shape], Numbers(dtype=dtype)
    _, most = measured(config, rows, length, recompute, numbers, lora=Lora(rank=8, alpha=16))
    predicted = training_peak_bytes(config, rows * length, numbers, recompute, adapted=True)
    assert 0.9 * most < predicted < 1.2 * most


@pytest.mark.parametrize("targets", [LINEAR_LAYERS, ("input",), ("output", "down")])
@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_are_counted(shape: str, targets: tuple[str, ...]) -> None:
    small = {"width": 32, "num_heads": 4, "queries_per_kv_head": 2, "se_groups": 2, "mr_groups": 2}
    config, lora = replace(SHAPES[shape][0], **small), Lora(rank=3, alpha=16, targets=targets)
    model = StripedHyena2(config)
    add_adapters(model, lora, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count_adapters(config, lora) == trained


def test_half_a_million_tokens_train_on_one_card() -> None:
    config, numbers = preset("1b"), Numbers(dtype="bf16")
    _, most = measured(config, 1, 524_288, Recompute.NESTED, numbers)
    assert most + 12 * count_parameters(config) < 60 * 2**30
    assert training_peak_bytes(config, 524_288, numbers, Recompute.NESTED) == pytest.approx(most, rel=0.1)


def test_the_more_is_made_again_the_less_is_kept() -> None:
    config, numbers = preset("1b"), Numbers(dtype="bf16")
    kept = [saved_bytes(config, 65_536, numbers, recompute) for recompute in Recompute]
    assert kept[0] > 2 * kept[1] > 4 * kept[2] > 8 * kept[3]


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", Recompute)
def test_a_gpu_takes_what_was_planned(recompute: Recompute) -> None:
    config, length = preset("350m"), 16_384
    settings = TrainConfig(
        steps=1, batch_size=1, length=length, device="cuda", precision=Precision.BF16, recompute=recompute
    )
    model = random_model(config, device="cuda", dtype=torch.float32).use_recompute(recompute)
    updates = Updates(model, build_optimizer(model, settings), settings, ALONE)
    source = RandomWindows(length)
    for number in range(2):  # the first makes the moments
        torch.cuda.reset_peak_memory_stats()
        batch = HostBatch.of(source.batch(number, 1), pinned=True)
        updates.make(batch, lr=1e-4)
    planned = predict_memory(
        Plan(
            config=config,
            task=Task.TRAIN,
            length=length,
            numbers=Numbers(dtype="bf16"),
            room=1 << 40,
            gpu=True,
            recompute=recompute,
        )
    )
    assert planned.total - planned.runtime == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
