"""FP8: rounding against two oracles, products against float64, what a row may depend on, and choosing a precision."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernels import quantise, scale_of
from sh2.errors import Sh2Error
from sh2.fp8 import InputProjection, Precision, Quantised, fp8_lacks, fp8_linear, precision_of
from sh2.model import StripedHyena2
from tests.sh2.models import TINY, tiny

FP8_TINY = replace(TINY, fp8_input_projections=True)
ONE = torch.tensor(1.0)


def decoded(code: int) -> float:
    """The value of an E4M3 byte by its definition: 1 sign, 4 exponent (bias 7), 3 mantissa bits, no infinity."""
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


POSITIVE = [decoded(code) for code in range(127)]


def rounded(value: float) -> float:
    """The nearest E4M3 number in float64, an even code where two are as near, the largest beyond it."""
    size = abs(value)
    above = next((code for code, number in enumerate(POSITIVE) if number >= size), None)
    if above is None:
        return float(np.copysign(POSITIVE[-1], value))
    code = min((max(above - 1, 0), above), key=lambda one: (abs(POSITIVE[one] - size), one % 2))
    return float(np.copysign(POSITIVE[code], value))


def codes_of(values: torch.Tensor) -> torch.Tensor:
    return quantise(values, ONE)[0]


def test_every_code_is_what_the_definition_says_and_rounds_to_itself() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).double()
    np.testing.assert_array_equal(values.numpy(), [decoded(code) for code in range(256)])
    numbers = ~values.isnan()
    assert torch.equal(codes_of(values.float())[numbers].view(torch.uint8), codes[numbers])
    assert codes_of(values.float())[~numbers].float().isnan().all()


def test_ties_go_to_even_and_what_lies_beside_them_to_the_nearer() -> None:
    values = torch.tensor(POSITIVE, dtype=torch.float64)
    middle = (values[:-1] + values[1:]) / 2
    for numbers in (middle, middle * (1 + 2**-20), middle * (1 - 2**-20)):
        for signed in (numbers, -numbers):
            want = [rounded(float(number)) for number in signed.float()]
            np.testing.assert_array_equal(codes_of(signed.float()).double().numpy(), want)
    even = codes_of(middle.float()).view(torch.uint8)
    assert (even % 2 == 0).all()


@pytest.mark.parametrize(
    ("value", "want"), [(448, 448), (449, 448), (464, 448), (465, 448), (1e30, 448), (torch.inf, 448), (2**-10, 0)]
)
def test_what_is_too_large_becomes_the_largest_and_half_the_smallest_nothing(value: float, want: float) -> None:
    assert codes_of(torch.tensor([value, -value])).float().tolist() == [want, -want]


@given(st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=50), st.floats(2**-8, 2**8, width=32))
def test_rounding_is_that_of_the_oracle_and_of_torch(values: list[float], scale: float) -> None:
    x = torch.tensor(values)
    scaled = x * scale
    found = quantise(x, torch.tensor(scale))[0]
    assert torch.equal(found.float(), scaled.clamp(-448, 448).to(torch.float8_e4m3fn).float())
    np.testing.assert_array_equal(found.double().numpy(), [rounded(float(one)) for one in scaled])


def test_the_scale_takes_the_largest_magnitude_to_the_largest_number() -> None:
    amax = torch.tensor([448.0, 1.0, 3.0, 1e-3, 0.0, torch.inf, torch.nan, 1e-40])
    found = scale_of(amax)
    assert found[:4].tolist() == (np.float32(448) / amax[:4].numpy()).tolist()
    assert found[4:].tolist() == [1, 1, 1, torch.finfo(torch.float32).max]


def operands(*, seed: int = 0, D: int = 64, E: int = 48) -> tuple[torch.Tensor, Quantised]:
    generator = torch.Generator().manual_seed(seed)
    x_BLD = torch.randn(3, 17, D, generator=generator) * torch.logspace(-3, 3, 17)[:, None]
    weight_ED = torch.randn(E, D, generator=generator) * 0.02
    return x_BLD, Quantised.of(weight_ED, scale_of(weight_ED.abs().amax()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [False, True])
def test_the_emulated_product_is_that_of_the_rounded_operands_in_float64(dtype: torch.dtype, stored: bool) -> None:
    x_BLD, weight_ED = operands()
    x_BLD = x_BLD.to(dtype)
    amax_BL1 = x_BLD.float().abs().amax(-1, keepdim=True)
    scale = torch.tensor(7.3) if stored else torch.from_numpy(np.float32(448) / amax_BL1.numpy())
    codes = np.vectorize(rounded)((x_BLD.float() * scale).numpy())
    want = (codes @ weight_ED.codes.double().numpy().T) / (scale.double() * weight_ED.scale.double()).numpy()
    found = fp8_linear(x_BLD, weight_ED, None, scale if stored else None, Precision.FP8_EMULATED)
    assert found.dtype is dtype
    # the largest error of a sum of 64 products in float32, and of one rounding to the dtype
    sizes = (abs(codes) @ abs(weight_ED.codes.double().numpy().T)) / (scale.double() * weight_ED.scale).numpy()
    error = abs(found.double().numpy() - want)
    assert (error <= 64 * 2**-24 * sizes + abs(want) * torch.finfo(dtype).eps).all()


def test_the_bias_is_added_to_the_product() -> None:
    x_BLD, weight_ED = operands()
    bias_E = torch.linspace(-1, 1, 48)
    plain = fp8_linear(x_BLD, weight_ED, None, None, Precision.FP8_EMULATED)
    assert torch.equal(fp8_linear(x_BLD, weight_ED, bias_E, None, Precision.FP8_EMULATED), plain + bias_E)


@pytest.mark.parametrize("stored", [None, torch.tensor(2.0)])
def test_a_token_is_the_same_alone_in_a_batch_and_in_chunks(stored: torch.Tensor | None) -> None:
    """Mates of every size, and one that is not finite: a scale a tensor or a sequence would fail here."""
    x_BLD, weight_ED = operands()
    x_BLD[1, 5] = torch.inf
    whole = fp8_linear(x_BLD, weight_ED, None, stored, Precision.FP8_EMULATED)
    for row in (0, 2):
        alone = fp8_linear(x_BLD[row : row + 1], weight_ED, None, stored, Precision.FP8_EMULATED)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-6 * float(whole[row].abs().max()))
        for size in (1, 2, 16):
            pieces = [
                fp8_linear(piece, weight_ED, None, stored, Precision.FP8_EMULATED)
                for piece in x_BLD[row : row + 1].split(size, dim=1)
            ]
            chunked = torch.cat(pieces, dim=1)[0]
            # a token's largest output sets what its rounding may be
            error = (chunked - whole[row]).abs().amax(-1) / whole[row].abs().amax(-1)
            assert error.max() < 1e-6


def layer(**settings: object) -> InputProjection:
    generator = torch.Generator().manual_seed(3)
    made = InputProjection(32, 48, bias=True)
    nn.init.normal_(made.weight, generator=generator)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def test_the_weight_in_fp8_follows_the_weight() -> None:
    made, x_BLD = layer(precision=Precision.FP8_EMULATED), torch.randn(2, 3, 32)
    changes: list[Callable[[InputProjection], object]] = [
        lambda one: one.weight.mul_(2),
        lambda one: one.load_state_dict({"weight": torch.ones(48, 32), "bias": torch.zeros(48)}, assign=True),
        lambda one: one.bfloat16(),
        lambda one: setattr(one, "fp8_scales", torch.tensor([2.0, 3.0])),
    ]
    with torch.no_grad():
        made(x_BLD)
        for change in changes:
            change(made)
            weight = made.weight.detach()
            kept = made.quantised_weight()
            scale = scale_of(weight.abs().amax()) if made.fp8_scales is None else made.fp8_scales[1]
            assert torch.equal(kept.codes.float(), quantise(weight, scale)[0].float())
            assert made.quantised_weight() is kept


def test_stored_scales_keep_float32_and_are_used() -> None:
    stored = torch.tensor([0.3, 0.7])
    made = layer(fp8_scales=stored.clone()).bfloat16()
    assert made.fp8_scales is not None
    assert made.fp8_scales.dtype is torch.float32
    assert torch.equal(made.fp8_scales, stored)
    made.precision = Precision.FP8_EMULATED
    x_BLD = torch.randn(1, 4, 32).bfloat16()
    with torch.no_grad():
        want = fp8_linear(x_BLD, Quantised.of(made.weight, stored[1]), made.bias, stored[0], Precision.FP8_EMULATED)
        assert torch.equal(made(x_BLD), want)


def test_gradients_are_those_of_the_plain_layer() -> None:
    grads = []
    for precision in (None, Precision.FP8_EMULATED):
        made, x_BLD = layer(precision=precision), torch.ones(1, 2, 32, requires_grad=True)
        made(x_BLD).sum().backward()
        grads.append([x_BLD.grad, made.weight.grad, made.bias.grad])
    for plain, straight in zip(*grads, strict=True):
        assert plain is not None
        assert straight is not None
        assert torch.equal(plain, straight)


@torch.inference_mode()
def test_fp8_changes_a_model_a_little_and_its_scores_do_not_depend_on_batch_mates() -> None:
    model, ids_BL = StripedHyena2(FP8_TINY).eval(), torch.randint(65, 85, (3, 60))
    plain = model(ids_BL)[0]
    emulated = model.use_precision("fp8-emulated")(ids_BL)[0]
    difference = (emulated - plain).norm() / plain.norm()
    assert 1e-3 < difference < 0.2
    # a last bit that differs may round to another code: far rarer than a dependence on a mate or a chunk
    alone = torch.cat([model(ids_BL[row : row + 1])[0] for row in range(3)])
    assert (alone - emulated).norm() / emulated.norm() < 0.1 * difference
    pieces, state = [], None
    for piece_BL in ids_BL.split(7, dim=1):
        logits, state = model(piece_BL, state)
        pieces.append(logits)
    assert (torch.cat(pieces, dim=1) - emulated).norm() / emulated.norm() < 0.1 * difference


@pytest.mark.parametrize(
    ("trained", "precision", "runs"),
    [
        (True, "auto", "fp8-emulated"),
        (False, "auto", "fp32"),
        (True, "bf16", "bf16"),
        (True, "fp32", "fp32"),
        (False, "bf16", "bf16"),
        (True, "fp8-emulated", "fp8-emulated"),
        (False, "fp8-emulated", "fp8-emulated"),
    ],
)
def test_a_model_runs_in_the_precision_that_was_chosen(trained: bool, precision: str, runs: str) -> None:
    model = StripedHyena2(FP8_TINY if trained else TINY)
    assert precision_of(model) == "fp32"
    assert precision_of(model.use_precision(precision)) == runs
    assert model.embedding.weight.dtype is (torch.bfloat16 if runs == "bf16" else torch.float32)
    assert precision_of(model.use_precision("fp32")) == "fp32"


def test_fp8_is_refused_where_the_hardware_has_none_with_the_way_out() -> None:
    with pytest.raises(Sh2Error) as caught:
        tiny().use_precision("fp8")
    assert caught.value.args == ("precision fp8 cannot run here: the device `cpu` has no FP8 products",)
    assert caught.value.__notes__ == ["fp8-emulated rounds alike on any device"]


@pytest.mark.parametrize(
    ("capability", "width", "want"),
    [
        ((8, 0), 32, "A card has no FP8 products: its compute capability is 8.0, they need 8.9"),
        ((8, 9), 32, None),
        ((9, 0), 1920, None),
        ((9, 0), 24, "FP8 products need widths in multiples of 16, not 24"),
    ],
)
def test_what_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], width: int, want: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    assert fp8_lacks(torch.device("cuda"), width) == want


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(Sh2Error) as caught:
        tiny().use_precision("fp4")
    assert caught.value.args == ("unknown precision `fp4`",)
    assert caught.value.__notes__ == ["use auto, bf16, fp32, fp8, fp8-emulated, fp8-weights"]


def test_a_trial_without_values_leaves_nothing_behind() -> None:
    model = StripedHyena2(FP8_TINY).use_precision("fp8-emulated").use_backend("triton").use_backend("reference")
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, dtype=torch.long))[0].isfinite().all()
