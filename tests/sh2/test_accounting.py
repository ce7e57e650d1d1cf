"""Arithmetic and memory counted from shapes, against what torch counts and what tensors really take."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sh2 import joined
from sh2.bench.models import random_model
from sh2.config import FeedForward, ModelConfig
from sh2.fp8 import InputProjection, precision_of
from sh2.model import StripedHyena2
from sh2.planning.accounting import (
    Numbers,
    activation_bytes,
    block_bytes,
    ends_bytes,
    forward_flops,
    kv_cache_bytes,
    loaded_bytes,
    projection_copies_bytes,
    state_bytes,
    weight_bytes,
)
from sh2.presets import PRESETS, preset
from tests.sh2.memory import counting
from tests.sh2.models import CONFIGS

LENGTH = 40
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_products_are_those_that_torch_counts(name: str) -> None:
    config = CONFIGS[name]
    model = StripedHyena2(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, LENGTH, dtype=torch.int64))
    counted = {
        path.removeprefix("StripedHyena2."): {str(op): flops for op, flops in ops.items()}
        for path, ops in counter.get_flop_counts().items()
    }
    linear = {
        path: sum(counted[f"{path}"].values())
        for path, part in model.named_modules()
        if isinstance(part, nn.Linear)
        if path in counted
    }
    got = forward_flops(config, LENGTH)
    feed_forward = sum(flops for path, flops in linear.items() if ".feed_forward." in path)
    assert got["projections"] == sum(flops for path, flops in linear.items() if ".mixer." in path)
    if config.feed_forward is FeedForward.GATED_MLP:
        assert got["feed_forward"] == feed_forward
    else:  # and its filters: 3 x 3 taps, 7 taps, two gates
        assert got["feed_forward"] == feed_forward + LENGTH * config.num_layers * config.width * (18 + 14 + 2)
    # torch multiplies queries with all keys, the later ones too
    layers = [f"blocks.{layer}.mixer" for layer, kind in enumerate(config.layout) if kind == "*"]
    whole = sum(counted[layer].get("aten.bmm", 0) for layer in layers)
    assert got["attention"] == whole * (LENGTH + 1) / (2 * LENGTH)


def test_filters_cost_two_operations_a_tap_or_mode_and_one_a_gate() -> None:
    config = preset("evo2_7b_base")  # 9 SE of 7 taps, 9 MR of 128 and a skip, 9 LI of 16 modes and a skip
    got = forward_flops(config, 10)
    assert got["hyena_se"] == 10 * 9 * 4096 * (2 + 2 * 7)
    assert got["hyena_mr"] == 10 * 9 * 4096 * (2 + 2 * 129)
    assert got["hyena_li"] == 10 * 9 * 4096 * (2 + 4 * 16 + 2)
    assert got["featurizer"] == 10 * 27 * 3 * 4096 * 2 * 3


@pytest.mark.parametrize(("length", "tokens_per_second", "tflops"), [(8192, 52_827, 476), (16_384, 43_582, 495)])
def test_a_measured_training_run_had_the_rate_that_was_reported(
    length: int, tokens_per_second: int, tflops: int
) -> None:
    flops = 3 * sum(forward_flops(preset("1b-transformer"), length).values())
    assert flops / length * tokens_per_second / 1e12 == pytest.approx(tflops, rel=0.002)


@pytest.mark.parametrize("name", CONFIGS)
def test_pieces_cost_what_the_whole_does(name: str) -> None:
    first, rest = forward_flops(CONFIGS[name], 30), forward_flops(CONFIGS[name], 70, past=30)
    assert {key: first[key] + rest[key] for key in first} == forward_flops(CONFIGS[name], 100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_weights_and_states_take_what_their_tensors_take(name: str, dtype: str) -> None:
    model = StripedHyena2(CONFIGS[name]).to(DTYPES[dtype])
    assert weight_bytes(model.config, dtype) == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    _, state = model(torch.zeros(3, LENGTH, dtype=torch.int64))
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) == 3 * (
        state_bytes(model.config, dtype) + kv_cache_bytes(model.config, LENGTH, dtype)
    )


@torch.no_grad()
def test_states_of_filters_keep_nothing_else_alive() -> None:
    model = StripedHyena2(replace(CONFIGS["striped"], layout="SML"))
    _, state = model(torch.zeros(1, 1000, dtype=torch.int64))
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == state_bytes(model.config, "fp32")


def test_projections_in_fp8_keep_a_copy_of_their_weights() -> None:
    model = StripedHyena2(replace(CONFIGS["striped"], fp8_input_projections=True)).use_precision("fp8-emulated")
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    copies = sum(block.mixer.input.quantised_weight().codes.nbytes for block in model.blocks[:3])
    assert projection_copies_bytes(model.config, "fp8-emulated") == copies
    assert projection_copies_bytes(model.config, "fp8") == copies / 2


@pytest.mark.parametrize("fp8_weights", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_every_block_is_kept_in_what_its_tensors_take(name: str, dtype: str, trained: bool, fp8_weights: bool) -> None:
    config = replace(CONFIGS[name], fp8_input_projections=trained)
    numbers = Numbers(dtype=dtype, projections="fp8-emulated" if trained else None, fp8_weights=fp8_weights)
    model = random_model(config, device="cpu", dtype=DTYPES[dtype], fp8_weights=fp8_weights)
    if trained:
        model.use_precision("auto")
    model(torch.zeros(1, 4, dtype=torch.int64))

    def size(module: torch.nn.Module) -> int:
        copies = [part.quantised_weight().codes for part in module.modules() if isinstance(part, InputProjection)]
        tensors = [*module.parameters(), *module.buffers(), *(copies if trained else [])]
        return sum(tensor.nbytes for tensor in tensors)

    for kind, block in zip(config.kinds, model.blocks, strict=True):
        assert block_bytes(config, kind, numbers) == size(block)
    assert loaded_bytes(config, numbers) == size(model)
    if set(config.layout) != {"*"}:  # without hyena mixers nothing runs in FP8
        assert numbers.name == precision_of(model)
    assert ends_bytes(config, numbers) == size(model) - sum(map(size, model.blocks))


def test_the_40b_in_fp8_is_half_of_that_in_bf16() -> None:
    config = preset("evo2_40b")
    whole, packed = (Numbers(dtype="bf16", fp8_weights=packed) for packed in (False, True))
    assert loaded_bytes(config, whole) == pytest.approx(81.5e9, rel=0.02)
    assert loaded_bytes(config, packed) == pytest.approx(loaded_bytes(config, whole) / 2, rel=0.01)


TOKENS = 4096
SHAPES = {
    "7B": replace(preset("evo2_7b_base"), layout="SML"),
    "1B": replace(preset("evo2_1b_base"), layout="LMS", fp8_input_projections=False),
    "debug": replace(preset("debug"), layout="SML"),
    **{f"7B {kind}": replace(preset("evo2_7b_base"), layout=kind) for kind in "SML"},
    "7B, SE for feed-forward": replace(preset("evo2_7b_base"), layout="M", feed_forward=FeedForward.HYENA_SE),
    "many heads to a key": replace(preset("350m"), layout="SM", queries_per_kv_head=4),
}


@pytest.mark.parametrize(("dtype", "fused"), [("bf16", True), ("bf16", False), ("fp32", True), ("fp32", False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_take_what_tensors_take(shape: str, dtype: str, fused: bool) -> None:
    config, numbers = SHAPES[shape], Numbers(dtype=dtype, fused=fused)
    for rows, length in ((1, TOKENS), (4, TOKENS // 4)):
        taken = peak(config, DTYPES[dtype], rows, length, fused=fused)
        states = rows * state_bytes(config, dtype)
        assert activation_bytes(config, TOKENS, numbers, logits=False) + states == pytest.approx(taken, rel=0.03)


@pytest.mark.parametrize("config", [replace(config, layout="*") for config in SHAPES.values()])
def test_activations_of_attention_take_what_tensors_take(config: ModelConfig) -> None:
    # its first keys and values are counted with the states; here they live on as they are made
    taken = peak(config, torch.bfloat16, 1, TOKENS, fused=True)
    numbers = Numbers(dtype="bf16")
    predicted = activation_bytes(config, TOKENS, numbers, logits=False) + kv_cache_bytes(config, TOKENS, "bf16")
    assert 0.8 * taken < predicted < 1.1 * taken


def peak(config: ModelConfig, dtype: torch.dtype, rows: int, length: int, *, fused: bool) -> int:
    """What running a piece takes at most, beside the weights."""
    with torch.no_grad(), counting(config, dtype) as (live, model), pytest.MonkeyPatch.context() as patch:
        model.use_backend("triton" if fused else "reference")
        patch.setattr(joined, "_summing", lambda x_BLD: fused)  # as on a GPU
        ids = torch.zeros(rows, length, dtype=torch.int64)
        live.most = before = live.now
        model.hidden(ids)
        return live.most - before


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_counted(name: str) -> None:
    config = preset(name)
    assert weight_bytes(config, "bf16") < weight_bytes(config, "fp32")
    assert 0 < activation_bytes(config, 1, Numbers(dtype="bf16")) < activation_bytes(config, 1, Numbers(dtype="fp32"))
