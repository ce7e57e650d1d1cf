"""What a run reports beside its loss, each against its definition: arithmetic, noise, filters and traces."""

import gzip
import json

import numpy as np
import pytest
import torch

from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train import clock
from sh2.train.config import TrainConfig
from sh2.train.filters import filter_statistics
from sh2.train.loader import HostBatch
from sh2.train.noise import NoiseScale
from sh2.train.optimizer import build_optimizer
from sh2.train.team import ALONE
from sh2.train.update import Updates
from tests.sh2.test_train_loop import TINY, Watcher, trainer
from tests.sh2.test_train_update import RandomWindows


def speeds(folder):
    return [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]


# of a token of TINY (width 16, SML*, MLP of 24, 8 taps, 4 modes), by hand
PROJECTIONS = 4 * 2 * 4 * 16 * 16
MLP = 4 * 2 * 3 * 16 * 24
FEATURIZERS = 3 * 2 * 3 * 3 * 16
FILTERS = 2 * 16 * 7 + 2 * 16 * (8 + 1) + 2 * 16 * (2 * 4 + 1) + 3 * 2 * 16  # and the gates
LOGITS = 2 * 16 * 512
ATTENTION = 4 * 16 * (16 + 1) / 2  # of windows of 16, on average


def test_the_arithmetic_of_a_run_is_that_of_the_definitions(tmp_path):
    watcher = Watcher()
    trainer(tmp_path, watcher=watcher, peak_tflops=0.5, log_every=6).run()

    flops = 3 * (PROJECTIONS + MLP + FEATURIZERS + FILTERS + LOGITS + ATTENTION)
    assert len(watcher.speeds) == 2
    for record in watcher.speeds:
        assert record.tflops == pytest.approx(record.tokens_per_second * flops / 1e12)
        assert record.mfu == pytest.approx(record.tflops / 0.5)
        assert record.noise_scale is None


def test_the_peak_is_measured_where_nobody_states_it(tmp_path, monkeypatch):
    asked = []
    clock._measured_peak.cache_clear()
    monkeypatch.setattr(
        clock, "matmul_flops_per_second", lambda device, stopwatch, dtype: asked.append((device, dtype)) or 2e12
    )
    watcher = Watcher()
    for name in ("one", "two"):
        trainer(tmp_path / name, watcher=watcher, precision="bf16").run()
    clock._measured_peak.cache_clear()

    assert asked == [("cpu", torch.bfloat16)]
    assert all(record.mfu == pytest.approx(record.tflops / 2) for record in watcher.speeds)


def test_the_noise_scale_is_found_in_gradients_of_known_noise():
    rng, noise = np.random.default_rng(0), NoiseScale()
    width, targets, passes = 500, 30.0, 4
    gradient = rng.normal(size=width)
    deviation = 5.0  # of the gradient of one target, in every direction
    for _ in range(400):
        parts = gradient + rng.normal(size=(passes, width)) * deviation / targets**0.5
        first, whole = parts[0] / passes, parts.mean(axis=0)
        noise.add(
            first_norm=float(np.linalg.norm(first)),
            norm=float(np.linalg.norm(whole)),
            first_weight=targets,
            weight=passes * targets,
        )

    assert noise.estimate() == pytest.approx(width * deviation**2 / (gradient**2).sum(), rel=0.05)


@pytest.mark.parametrize("weights", [(10.0, 10.0), (0.0, 10.0)])
def test_one_pass_tells_nothing_of_noise(weights):
    noise = NoiseScale()
    noise.add(first_norm=2.0, norm=1.0, first_weight=weights[0], weight=weights[1])
    assert noise.estimate() is None


def test_a_run_with_accumulation_reports_noise(tmp_path):
    trainer(tmp_path, accumulation=4, batch_size=1, steps=6, log_every=3, train=RandomWindows(16), seed=3).run()
    found = [line["noise_scale"] for line in speeds(tmp_path)]
    assert len(found) == 2
    assert any(value is not None and value > 0 for value in found)


def test_the_norm_of_the_first_pass_is_that_of_its_windows_alone():
    model = StripedHyena2(TINY)
    batch = HostBatch.of(RandomWindows(16).batch(0, 6), pinned=False)
    config = TrainConfig(steps=1, batch_size=2, accumulation=3, length=16, clip=0.0)
    tokens = batch.tokens[:2].long()
    nats = -model(tokens[:, :-1])[0].double().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    loss = (nats * batch.weights[:2].double()).sum() / batch.weights.double().sum()
    expected = torch.stack([part.norm() for part in torch.autograd.grad(loss, list(model.parameters()))]).norm()

    numbers = Updates(model, build_optimizer(model, config), config, ALONE).make(batch, lr=1e-3)

    assert numbers[4].item() == pytest.approx(expected.item(), rel=1e-5)
    assert numbers[3] > 0


def test_filters_are_described_by_how_far_they_look_back():
    config = ModelConfig(
        width=4, layout="SML*", num_heads=2, mlp_width=8, se_groups=2, mr_groups=2, mr_taps=8, num_modes=2
    )
    model = StripedHyena2(config)
    short, middle, long = (model.blocks[layer].mixer for layer in range(3))
    with torch.no_grad():
        short.taps.zero_()[:, 3] = 2.0
        middle.taps.zero_()[0, 0], middle.taps[1, 7] = 1.0, 1.0
        long.log_poles.copy_(torch.tensor([[-1 / 10, -1 / 1000]] * 4))
        long.pole_shift.zero_()
        long.residues.copy_(torch.tensor([[1.0, 0.0]] * 3 + [[1.0, 0.05]]))
        long.skip.fill_(3.0)

    first, second, third = filter_statistics(model)

    assert first["module"] == "blocks.0.mixer"
    assert (first["lag"], first["skip_rms"]) == (3.0, None)
    assert first["rms"] == pytest.approx((4 / 7) ** 0.5)
    assert second["lag"] == 3.5
    assert third["skip_rms"] == pytest.approx(3.0)
    assert third["rms"] == pytest.approx(((3 + 1.05**2) / 4) ** 0.5)
    # the one slow mode sums to 50, the four fast ones to about 10.5 each: 15% of the squares
    assert [round(third[f"memory_{part}"]) for part in (5, 50, 95)] == [10, 1000, 1000]


def test_filters_are_written_when_they_are_asked_for(tmp_path):
    trainer(tmp_path, filter_statistics=5).run()
    lines = [json.loads(line) for line in (tmp_path / "filters.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]
    assert [part["module"] for part in lines[0]["filters"]] == [f"blocks.{layer}.mixer" for layer in range(3)]
    assert lines[0]["filters"] != lines[1]["filters"]

    trainer(tmp_path / "without").run()
    assert not (tmp_path / "without" / "filters.jsonl").exists()


def test_one_step_is_traced(tmp_path):
    watcher = Watcher()
    trainer(tmp_path, watcher=watcher, profile=3).run()
    (trace,) = tmp_path.glob("*.json.gz")
    assert trace.name == "profile_step_3.json.gz"
    assert watcher.notes == [f"the trace of step 3 is {trace}: open it at https://ui.perfetto.dev"]
    names = [
        event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"] if "name" in event
    ]
    assert "aten::mm" in names
    assert names.count("Optimizer.step#AdamW.step") == 1


@pytest.mark.parametrize("field", ["peak_tflops", "filter_statistics", "profile"])
def test_values_below_0_are_refused(field):
    with pytest.raises(Sh2Error, match=f"train field `{field}` must be at least 0, not -1"):
        TrainConfig.from_dict({"steps": 1, field: -1})


def test_documents_are_cut_or_made_again_but_not_both():
    with pytest.raises(Sh2Error, match=r"train fields `recompute` \(full\) and `reset_documents` cannot both be given"):
        TrainConfig.from_dict({"steps": 1, "recompute": "full", "reset_documents": True})
    with pytest.raises(Sh2Error, match="train field `recompute` must be `none` or `selective` or"):
        TrainConfig.from_dict({"steps": 1, "recompute": "all"})
