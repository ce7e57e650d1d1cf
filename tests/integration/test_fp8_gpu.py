"""On a GPU with FP8 products: the hardware against the emulation, which is proved on the CPU."""

from dataclasses import replace

import pytest
import torch

import sh2
from kernels import quantise, scale_of
from sh2.bench.models import random_model
from sh2.fp8 import Precision, Quantised, _emulate, fp8_linear, multiply, precision_of
from sh2.model import StripedHyena2
from sh2.planning.accounting import Numbers, loaded_bytes
from sh2.presets import preset
from tests.kernels.definitions import relative_error
from tests.sh2.models import TINY

pytestmark = pytest.mark.gpu


def operands(rows: int, D: int) -> tuple[torch.Tensor, Quantised]:
    generator = torch.Generator("cuda").manual_seed(rows)
    x_MD = torch.randn(rows, D, generator=generator, device="cuda")
    weight_ED = torch.randn(3 * D, D, generator=generator, device="cuda") * 0.02
    return x_MD, Quantised.of(weight_ED, scale_of(weight_ED.abs().amax()))


def test_codes_are_those_of_the_cpu() -> None:
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()  # every bfloat16
    scale = torch.tensor(1.37)
    on_gpu = quantise(values.cuda(), scale.cuda())[0].cpu().float()
    torch.testing.assert_close(on_gpu, quantise(values, scale)[0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 15, 16, 300])
@pytest.mark.parametrize("D", [32, 1920, 4096])
@torch.inference_mode()
def test_hardware_and_emulation_agree_to_the_last_rounding(rows: int, D: int) -> None:
    """Exact products, summed as widely as the hardware can, and one rounding to bfloat16."""
    x_MD, weight_ED = operands(rows, D)
    codes_MD = quantise(x_MD, scale_of(x_MD.abs().amax()))[0]
    one = torch.ones((), device="cuda")
    real = multiply(codes_MD, weight_ED.codes, one, one, dtype=torch.float32, fast=False)
    emulated = _emulate(codes_MD, weight_ED.codes)
    exact = codes_MD.double() @ weight_ED.codes.double().t()
    sizes = codes_MD.double().abs() @ weight_ED.codes.double().abs().t()
    assert ((emulated.double() - exact).abs() / sizes).max() < 1e-5
    assert ((real.double() - exact).abs() / sizes).max() < 2**-13  # the width of Hopper's own sums
    undo = torch.tensor(0.37, device="cuda"), torch.tensor(0.011, device="cuda")
    rounded = multiply(codes_MD, weight_ED.codes, *undo, dtype=torch.bfloat16, fast=False)
    assert relative_error(rounded, (emulated * (undo[0] * undo[1])).bfloat16()) < 2**-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("rows", [1, 300])
@torch.inference_mode()
def test_the_layer_on_hardware_is_the_emulated_one_but_for_its_fast_sums(
    dtype: torch.dtype, stored: bool, rows: int
) -> None:
    x_MD, weight_ED = operands(rows, 1920)
    x_BLD = x_MD[None].to(dtype)
    scale = torch.tensor(80.0, device="cuda") if stored else None
    real = fp8_linear(x_BLD, weight_ED, None, scale, Precision.FP8)
    emulated = fp8_linear(x_BLD, weight_ED, None, scale, Precision.FP8_EMULATED)
    on_cpu = fp8_linear(
        x_BLD.cpu(),
        Quantised(codes=weight_ED.codes.cpu(), scale=weight_ED.scale.cpu()),
        None,
        None if scale is None else scale.cpu(),
        Precision.FP8_EMULATED,
    )
    assert real.dtype is dtype
    assert relative_error(emulated.cpu(), on_cpu) < (1e-5 if dtype is torch.float32 else 2**-9)
    assert relative_error(real, emulated) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.inference_mode()
def test_a_model_runs_in_fp8_whatever_it_is_cut_into(dtype: torch.dtype) -> None:
    model = StripedHyena2(replace(TINY, width=64, fp8_input_projections=True)).to("cuda", dtype).eval()
    ids_BL = torch.randint(65, 85, (2, 50), device="cuda")
    plain = model(ids_BL)[0]
    assert precision_of(model.use_precision("auto").use_backend("triton")) == "fp8"
    real = model(ids_BL)[0]
    assert relative_error(real, plain) > 1e-3
    assert relative_error(real, model.use_precision("fp8-emulated")(ids_BL)[0]) < 0.05
    pieces, state = [], None
    for piece_BL in ids_BL.split(7, dim=1):
        logits, state = model.use_precision("fp8")(piece_BL, state)
        pieces.append(logits)
    assert relative_error(torch.cat(pieces, dim=1), real) < 0.05


@torch.inference_mode()
def test_a_model_with_its_weights_in_fp8_takes_half_the_memory_and_decodes_in_a_recorded_step() -> None:
    """The 1B's shape, in a few of its layers: memory, and tokens of a recorded step against those of single steps."""
    config = replace(preset("evo2_1b_base"), layout="SML*" * 2)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = random_model(config, device="cuda", dtype=torch.bfloat16, fp8_weights=True).use_backend("triton")
    numbers = Numbers(dtype="bf16", projections="fp8", fp8_weights=True)
    assert torch.cuda.memory_allocated() - before == pytest.approx(loaded_bytes(config, numbers), rel=0.02)
    (sample,) = sh2.generate(model, ["ACGTACGTAAGG"], length=24, temperature=0, stop_at_eod=False)
    ids = torch.tensor([list(b"ACGTACGTAAGG")], device="cuda")
    logits_BLV, state = model(ids)
    logits_BV = logits_BLV[:, -1]
    for wanted in sample.ids[:8].tolist():  # one of the likeliest: both round, each in its way
        assert float(logits_BV[0, wanted]) > float(logits_BV.max()) - 0.1
        logits_BV, state = model.step(torch.tensor([wanted], device="cuda"), state)
