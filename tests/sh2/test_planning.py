"""Plans against what then happens: memory against tensors, time against a clock; and what fits."""

from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
import torch

from sh2.bench.models import random_model
from sh2.bench.timing import Ceilings
from sh2.config import MixerKind, ModelConfig
from sh2.generation.generate import GenerationOptions, generate_each
from sh2.planning.accounting import Numbers, kv_cache_bytes, state_bytes, weight_bytes
from sh2.planning.plan import Plan, Task, fits, longest, predict_memory, predict_seconds
from sh2.planning.speeds import KNOWN_DEVICES, Line, Speeds, Trial, speeds_of
from sh2.presets import preset
from sh2.reading.chunks import chunks
from sh2.reading.scoring import log_probs_of, score
from sh2.recompute import Recompute
from tests.sh2.memory import LiveBytes, counting

SEVEN = replace(preset("evo2_7b_base"), layout="SML*SML*")
HUGE = 1 << 50


def plan(config: ModelConfig, task: Task, length: int, **others: object) -> Plan:
    numbers = Numbers(dtype="bf16")
    return Plan(
        **{"config": config, "task": task, "length": length, "numbers": numbers, "room": HUGE, "gpu": False} | others
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("config", [SEVEN, replace(preset("350m"), layout="SML*", queries_per_kv_head=4)])
@pytest.mark.parametrize(("length", "rows"), [(1000, 1), (8192, 2), (8193, 1), (40_000, 2)])
@torch.no_grad()
def test_reading_takes_the_memory_that_was_predicted(config: ModelConfig, length: int, rows: int, dtype: str) -> None:
    planned = plan(config, Task.SCORE, length, batch=rows, numbers=Numbers(dtype=dtype))
    with counting(config, torch.bfloat16 if dtype == "bf16" else torch.float32) as (live, model):
        model.use_backend("triton")
        ids = torch.zeros(rows, length, dtype=torch.int64)
        for start, x_BLD, _ in chunks(model, ids, most=8192):
            log_probs_of(model.logits(x_BLD), ids[:, start : start + x_BLD.shape[1]])
        assert predict_memory(planned).total == pytest.approx(live.most, rel=0.12)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("length", [100, 9000])
@torch.no_grad()
def test_weights_in_fp8_take_the_memory_that_was_predicted(length: int, trained: bool) -> None:
    config = replace(SEVEN, fp8_input_projections=trained)
    numbers = Numbers(dtype="bf16", projections="fp8" if trained else None, fp8_weights=True)
    planned = plan(config, Task.SCORE, length, numbers=numbers)
    with counting(config, torch.bfloat16, fp8_weights=True) as (live, model):
        model.use_precision("auto").use_backend("triton")
        ids = torch.zeros(1, length, dtype=torch.int64)
        for start, x_BLD, _ in chunks(model, ids, most=8192):
            log_probs_of(model.logits(x_BLD), ids[:, start : start + x_BLD.shape[1]])
        assert predict_memory(planned).total == pytest.approx(live.most, rel=0.15)


@pytest.mark.parametrize(("prompt", "samples"), [(2000, 1), (2000, 4), (20, 8)])
def test_writing_takes_the_memory_that_was_predicted(prompt: int, samples: int) -> None:
    config = replace(preset("debug"), layout="S**M")
    model = random_model(config, device="cpu", dtype=torch.float32)
    options = GenerationOptions(length=12, samples=samples, max_rows=samples, stop_at_eod=False)
    with LiveBytes() as live:
        list(generate_each(model, [np.full(prompt, 65)], options))
    planned = plan(
        config,
        Task.GENERATE,
        prompt + 12,
        prompt=prompt,
        batch=samples,
        numbers=Numbers(dtype="fp32", fused=False),
    )
    predicted = predict_memory(planned)
    assert predicted.total - predicted.weights == pytest.approx(live.most, rel=0.15)


def test_the_published_model_takes_what_is_known_of_it() -> None:
    # 80 KiB of keys and values a token; the fp8 ones a byte a number and a unit of four bytes for 128
    config = preset("evo2_7b")
    memory = predict_memory(plan(config, Task.SCORE, 1_048_576))
    assert memory.weights == weight_bytes(config, "bf16") == pytest.approx(13.2e9, rel=0.01)
    assert memory.cache >= 80 * 2**30 == kv_cache_bytes(config, 1_048_576, "bf16")
    assert kv_cache_bytes(config, 1_048_576, "fp8") == 80 * 2**30 * (128 + 4) / 256
    assert memory.states == state_bytes(config, "bf16")
    assert memory.total == memory.weights + memory.states + memory.cache + memory.activations


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("name", ["evo2_7b", "1b", "100m-transformer"])
def test_the_longest_fits_and_a_longer_one_does_not(task: Task, name: str) -> None:
    planned = plan(preset(name), task, 1000, room=60 * 2**30, gpu=True)
    if task is Task.TRAIN and name == "evo2_7b":
        assert longest(planned) == 0
        return
    most = longest(planned)
    assert most > 10_000
    assert fits(replace(planned, length=most))
    assert not fits(replace(planned, length=most + max(most // 4, 10)))
    assert longest(replace(planned, room=40 * 2**30)) < most
    assert longest(replace(planned, batch=4)) < most


def test_pieces_are_as_long_as_half_of_the_free_memory_allows() -> None:
    ample = plan(preset("evo2_40b"), Task.SCORE, 100_000, gpu=True)
    assert ample.chunk == 8192
    tight = replace(ample, room=weight_bytes(ample.config, "bf16") + 2 * 2**30)
    assert 64 <= tight.chunk < 8192
    assert tight.chunk & (tight.chunk - 1) == 0


def test_training_memory_grows_with_the_windows_and_counts_adam() -> None:
    config = preset("nano")
    one, eight = (predict_memory(plan(config, Task.TRAIN, 4096, batch=batch)) for batch in (1, 8))
    assert one.optimizer == pytest.approx(2 * one.weights, rel=0.01)
    assert 6 < eight.activations / one.activations <= 8


FLAT = Speeds(
    forward=dict.fromkeys(MixerKind, Line(fixed=1e-3, a_token=1e-6)),
    step=dict.fromkeys(MixerKind, 1e-4),
    ends=Line(a_token=1e-7),
    written=5e-4,
    attention_flops_per_second=1e12,
    past_flops_per_second=5e11,
    copy_bytes_per_second=1e11,
)


def test_time_is_the_sum_of_the_parts() -> None:
    config = preset("debug")  # four blocks, one with attention, of 128 channels
    whole = predict_seconds(plan(config, Task.SCORE, 8192), FLAT).total
    assert whole == pytest.approx(4 * (1e-3 + 8192e-6) + 8192e-7 + 4 * 128 * 8192 * 8193 / 2 / 1e12)
    two = predict_seconds(plan(config, Task.SCORE, 10_000), FLAT).total
    pairs = [8192 * 8193 / 2, 1808 * 1809 / 2, 1808 * 8192]
    arithmetic = 4 * 128 * ((pairs[0] + pairs[1]) / 1e12 + pairs[2] / 5e11)
    assert two == pytest.approx(4 * (2e-3 + 10_000e-6) + 10_000e-7 + arithmetic)
    written = predict_seconds(plan(config, Task.GENERATE, 300, prompt=100, batch=3), FLAT)
    cache = 3 * 200 * 2 * 128 * 2 / 1e11  # keys and values in bf16 of 200 tokens, on average
    assert written.writing == pytest.approx(200 * (4e-4 + 5e-4 + cache))
    assert predict_seconds(plan(config, Task.EMBED, 8192), FLAT).total == pytest.approx(whole - 8192e-7)


def test_a_pass_waits_for_weights_that_take_longer_to_copy_than_it_runs() -> None:
    config = preset("debug")
    read, written = plan(config, Task.SCORE, 10_000), plan(config, Task.GENERATE, 300, prompt=100)
    own = [predict_seconds(one, FLAT) for one in (read, written)]
    # of blocks that are copied in half a second, a piece, or a token, takes no less
    slow = replace(FLAT, host_bytes_per_second=2e6)
    streamed = [predict_seconds(replace(one, streamed=10**6), slow) for one in (read, written)]
    assert own[0].total < 1
    assert streamed[0].total == pytest.approx(2 * 0.5)
    assert (streamed[1].reading, streamed[1].writing) == pytest.approx((0.5, 200 * 0.5))
    # and where they are copied in less time than it runs, no more
    fast = replace(FLAT, host_bytes_per_second=2e12)
    assert [predict_seconds(replace(one, streamed=10**6), fast) for one in (read, written)] == own


def test_limits_of_another_device_bound_what_was_measured_there() -> None:
    # the published code's forward ran at 28,308 tokens a second, a compiled Transformer's update at 52,827
    h100 = KNOWN_DEVICES["h100"]
    config, numbers = preset("evo2_7b_base"), Numbers(dtype="bf16")
    speeds = speeds_of(h100, config, numbers, rows=1, training=False)
    reading = predict_seconds(plan(config, Task.SCORE, 8192), speeds).total
    assert 28_308 < 8192 / reading < 55_800
    writing = predict_seconds(plan(config, Task.GENERATE, 1025, prompt=1024), speeds).writing
    assert 1 / writing == pytest.approx(232, rel=0.02)
    twin = preset("1b-transformer")
    update = speeds_of(h100, twin, numbers, rows=0, training=True)
    assert 8192 / predict_seconds(plan(twin, Task.TRAIN, 8192), update).total == pytest.approx(52_827, rel=0.2)


def test_limits_of_another_device_are_near_what_was_measured_there() -> None:
    """As `tests/benchmarks/results/*_bench_forward.jsonl` and `*_bench_train.jsonl` have it."""
    h200, numbers = KNOWN_DEVICES["h200"], Numbers(dtype="bf16")
    config = preset("evo2_7b_base")
    speeds = speeds_of(h200, config, numbers, rows=0, training=False)
    for length, measured in ((8192, 47_213), (131_072, 32_466)):
        predicted = length / predict_seconds(plan(config, Task.SCORE, length, room=139 * 2**30), speeds).total
        assert predicted == pytest.approx(measured, rel=0.15)
    config, packed = preset("evo2_40b"), replace(numbers, projections="fp8", fp8_weights=True)
    speeds = speeds_of(h200, config, packed, rows=0, training=False)
    reading = predict_seconds(plan(config, Task.SCORE, 8192, numbers=packed, room=139 * 2**30), speeds).total
    assert 8192 / reading == pytest.approx(6928, rel=0.15)
    for name, length, recompute, measured in (
        ("h200", 8192, Recompute.NONE, 65_500),
        ("h200", 524_288, Recompute.NESTED, 9430),
        ("h100", 8192, Recompute.NONE, 62_600),
        ("h100", 131_072, Recompute.FULL, 29_900),
    ):
        update = speeds_of(KNOWN_DEVICES[name], preset("1b"), numbers, rows=0, training=True)
        planned = plan(preset("1b"), Task.TRAIN, length, recompute=recompute)
        assert length / predict_seconds(planned, update).total == pytest.approx(measured, rel=0.15)


def test_half_the_ceilings_take_twice_the_time() -> None:
    config, numbers = preset("evo2_1b_base"), Numbers(dtype="bf16")
    h100 = KNOWN_DEVICES["h100"]
    half = Ceilings(
        copy_bytes_per_second=h100.ceilings.copy_bytes_per_second / 2,
        matmul_flops_per_second=h100.ceilings.matmul_flops_per_second / 2,
    )
    slow = replace(
        h100,
        ceilings=half,
        attention_flops_per_second=h100.attention_flops_per_second / 2,
        past_flops_per_second=h100.past_flops_per_second / 2,
    )
    for planned in (plan(config, Task.SCORE, 50_000), plan(config, Task.GENERATE, 2000, prompt=1000, batch=4)):
        fast, slower = (
            predict_seconds(planned, speeds_of(device, config, numbers, rows=4, training=False)).total
            for device in (h100, slow)
        )
        assert slower == pytest.approx(2 * fast)


@pytest.mark.parametrize("training", [False, True])
def test_a_trial_finds_speeds_of_every_part(training: bool) -> None:
    config = replace(preset("debug"), width=32, mlp_width=64, se_groups=2, mr_groups=2)
    numbers = Numbers(dtype="fp32", fused=False)
    trial = Trial(
        config, numbers, device="cpu", backend="auto", tokens=256, rows=0 if training else 2, training=training
    )
    speeds = trial.run()
    assert set(speeds.forward) == set(config.kinds)
    assert all(line.at(1000) > 0 for line in speeds.forward.values())
    assert min(speeds.attention_flops_per_second, speeds.past_flops_per_second) > 0
    assert bool(speeds.step) is not training


def test_reading_takes_about_the_time_that_was_predicted() -> None:
    """Within a factor, for clocks of shared machines: on one at rest it is within a few hundredths."""
    config, length = preset("debug"), 6000
    model = random_model(config, device="cpu", dtype=torch.float32)
    numbers = Numbers(dtype="fp32", fused=False)
    speeds = Trial(config, numbers, device="cpu", backend="auto", tokens=length).run()
    took = []
    for _ in range(2):  # the second is warm
        began = perf_counter()
        score(model, [np.full(length, 65)])
        took.append(perf_counter() - began)
    predicted = predict_seconds(plan(config, Task.SCORE, length, numbers=numbers), speeds).total
    assert min(took) / 4 < predicted < 4 * max(took)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "length", "rows"), [("evo2_1b_base", 100_000, 1), ("350m", 8192, 4)])
def test_gpu_memory_and_time_are_within_15_percent(name: str, length: int, rows: int) -> None:
    config, numbers = replace(preset(name), fp8_input_projections=False), Numbers(dtype="bf16")
    speeds = Trial(config, numbers, device="cuda", backend="auto", tokens=8192 * rows).run()
    model = random_model(config, device="cuda", dtype=torch.bfloat16)
    room = torch.cuda.get_device_properties(0).total_memory
    planned = plan(config, Task.SCORE, length, batch=rows, room=room, gpu=True)
    sequences = [np.full(length, 65)] * rows
    score(model, sequences)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    began = perf_counter()
    score(model, sequences)
    took = perf_counter() - began
    memory = predict_memory(planned)
    assert memory.total - memory.runtime == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
    assert predict_seconds(planned, speeds).total == pytest.approx(took, rel=0.15)
