"""Plans of models over devices against where their tensors then go, and against what each part takes alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sh2
from sh2.checkpoint import loading, save_model
from sh2.config import ModelConfig
from sh2.devices.placement import HOST, place
from sh2.errors import Sh2Error
from sh2.fp8 import pack_layers
from sh2.model import StripedHyena2
from sh2.planning.accounting import Numbers
from sh2.planning.plan import Plan, Task, predict_memory, runtime_bytes
from sh2.planning.split import split
from sh2.presets import preset

GIB = 2**30
GPUS = [torch.device("cuda", index) for index in range(8)]


def plan(config: ModelConfig, length: int = 8192, **others: object) -> Plan:
    numbers = Numbers(dtype="bf16")
    given = {"config": config, "task": Task.SCORE, "length": length, "numbers": numbers, "room": 0, "gpu": True}
    return Plan(**given | others)


def tensors_of(config: ModelConfig, *, fp8_weights: bool) -> tuple[list[int], int]:
    """Bytes of each block and of all else in bf16, counted from a model's own tensors."""
    with torch.device("meta"):
        model = StripedHyena2(config)
        if fp8_weights:
            pack_layers(model.blocks, trained_in_fp8=config.fp8_input_projections)
        model.to(torch.bfloat16)

    def size(module: torch.nn.Module) -> int:
        return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))

    blocks = [size(block) for block in model.blocks]
    return blocks, size(model) - sum(blocks)


@pytest.mark.parametrize("fp8_weights", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["evo2_7b", "evo2_40b"])
def test_every_gpu_holds_the_tensors_that_are_placed_there(name: str, count: int, fp8_weights: bool) -> None:
    config = replace(preset(name), fp8_input_projections=False)
    sizes, rest = tensors_of(config, fp8_weights=fp8_weights)
    room = 96 * GIB
    placement = place(config, sizes, rest, GPUS[:count], [room - runtime_bytes(True)] * count)
    held = dict.fromkeys(GPUS[:count], 0) | {GPUS[0]: rest}
    for device, size in zip(placement.blocks, sizes, strict=True):
        held[device] += size
    numbers = Numbers(dtype="bf16", fp8_weights=fp8_weights)
    found = split(plan(config, numbers=numbers), GPUS[:count], [room] * count)
    assert {share.device: share.memory.weights for share in found.shares} == held
    assert [share.blocks for share in found.shares] == [placement.blocks.count(gpu) for gpu in GPUS[:count]]
    assert (found.plan.streamed, found.fits) == (0, True)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("gigabytes", [16, 40, 80])
def test_a_gpu_and_the_host_hold_what_streaming_leaves_to_them(gigabytes: int, trained: bool) -> None:
    config = replace(preset("evo2_40b"), fp8_input_projections=trained)
    sizes, rest = tensors_of(config, fp8_weights=False)
    codes = [3 * config.width**2 * (trained and kind != "*") for kind in config.kinds]  # beside what runs
    room = gigabytes * 10**9
    with_codes = [size + code for size, code in zip(sizes, codes, strict=True)]
    placement = place(config, with_codes, rest, [GPUS[0], HOST], [room - runtime_bytes(True), 1])
    streamed = [sizes[block] for block in placement.streamed]
    numbers = Numbers(dtype="bf16", projections="fp8" if trained else None)
    found = split(plan(config, length=1000, numbers=numbers), [GPUS[0], HOST], [room, None])
    gpu, host = found.shares
    kept = sum(size for block, size in enumerate(with_codes) if block not in placement.streamed)
    assert gpu.memory.weights == pytest.approx(rest + kept + 2 * max(streamed) + max(codes), abs=max(sizes) / 50)
    assert (host.memory.total, host.fits, found.plan.streamed) == (sum(streamed), True, sum(streamed))
    assert (gpu.blocks, host.blocks) == (config.num_layers, 0)


def test_parts_together_take_what_the_whole_takes() -> None:
    """Keys and values and states are shared out; what passes is everywhere; log-probabilities are taken at home."""
    config, length = preset("evo2_7b"), 8000
    (whole,) = split(plan(config, length), GPUS[:1], [200 * GIB]).shares
    assert whole.memory == predict_memory(plan(config, length, room=200 * GIB))
    parts = split(plan(config, length), GPUS[:4], [200 * GIB] * 4).shares
    for name in ("weights", "states", "cache"):
        assert sum(getattr(part.memory, name) for part in parts) == getattr(whole.memory, name)
    assert parts[0].memory.activations == whole.memory.activations
    assert all(part.memory.activations <= whole.memory.activations for part in parts)


def test_pieces_are_as_long_as_the_fullest_gpu_allows() -> None:
    config = replace(preset("evo2_40b"), fp8_input_projections=False)
    found, ample = (split(plan(config, 100_000), GPUS[:2], [room * GIB] * 2) for room in (40, 60))
    assert 64 <= found.plan.chunk < ample.plan.chunk == 8192


def test_what_does_not_fit_is_refused_or_told() -> None:
    config = preset("evo2_40b")
    with pytest.raises(Sh2Error, match=r"the model does not fit: .* GB of weights for `cuda:0`, which has 31\.6 GB"):
        split(plan(config), GPUS[:2], [30 * GIB] * 2)
    assert not split(plan(config, 10_000_000), GPUS[:2], [60 * GIB] * 2).fits


def test_a_model_over_one_device_twice_is_on_it_once() -> None:
    config = preset("debug")
    (share,) = split(plan(config, gpu=False), [HOST, HOST], [GIB, GIB]).shares
    assert (share.device, share.blocks) == (HOST, config.num_layers)


@pytest.mark.gpu
def test_gpu_streaming_takes_the_memory_that_was_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, length = preset("350m"), 512
    save_model(StripedHyena2(config).bfloat16(), tmp_path / "model")
    free = 500 * 10**6
    monkeypatch.setattr(loading, "free_bytes", lambda _: free)
    model = sh2.load(tmp_path / "model", device="cuda:0+cpu", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    sh2.score(model, [np.full(length, 65)])
    found = split(plan(config, length), [GPUS[0], HOST], [free + runtime_bytes(True), None])
    memory = found.shares[0].memory
    assert found.plan.streamed
    assert memory.total - memory.runtime == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
