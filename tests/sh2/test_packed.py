"""Models whose weights are kept in FP8: what rounding changes, what loading holds, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sh2
from sh2.checkpoint.loading import build, save_model
from sh2.checkpoint.source import open_model
from sh2.devices.streaming import stream
from sh2.errors import Sh2Error
from sh2.fp8 import PackedInputProjection, pack_layers, precision_of, products_of
from sh2.model import StripedHyena2
from sh2.packed import PackedLinear, is_packed
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS, TINY

FP8_TINY = replace(TINY, width=64, fp8_input_projections=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(StripedHyena2(TINY, seed=3), tmp_path / "model")
    return tmp_path / "model"


def ids(length: int, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.tensor(list(b"ACGT"))[torch.randint(4, (rows, length), generator=generator)]


def numbers(model: StripedHyena2) -> StripedHyena2:
    """The same model with the weights as numbers."""
    plain = StripedHyena2(model.config).eval()
    state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLinear):
            for own in ("codes", "units", "weight_scale"):
                state.pop(f"{name}.{own}", None)
            state[f"{name}.weight"] = layer.numbers()
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_packed_model_is_that_of_its_rounded_weights(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    whole = StripedHyena2(config, seed=1).eval()
    save_model(whole, tmp_path / "model")
    packed = sh2.load(tmp_path / "model", fp8_weights=True)
    linears = [module for module in whole.blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == len(linears)
    for length, rows in ((70, 2), (1, 1)):
        want, _ = numbers(packed)(ids(length, rows))
        torch.testing.assert_close(packed(ids(length, rows))[0], want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_weight_is_within_a_sixteenth_of_itself(folder: Path) -> None:
    whole, packed = sh2.load(folder), sh2.load(folder, fp8_weights=True)
    for name, layer in packed.named_modules():
        if isinstance(layer, PackedLinear):
            weight_ED = whole.get_submodule(name).weight  # type: ignore[union-attr]
            # below the smallest normal number of a row, by half the distance of its codes
            allowed = torch.maximum(weight_ED.abs() / 16, weight_ED.abs().amax(dim=1, keepdim=True) / 448 / 2**10)
            assert ((layer.numbers() - weight_ED).abs() <= allowed * (1 + 1e-6)).all(), name


@torch.no_grad()
def test_what_it_says_is_near_what_the_whole_model_says(folder: Path) -> None:
    """Rounding a number to four bits is off by 2.6% of it in the mean; a token passes through five products a block,
    whose errors have nothing to do with each other."""
    given = ids(300)
    whole, packed = (sh2.load(folder, fp8_weights=fp8)(given)[0].log_softmax(-1) for fp8 in (False, True))
    error = (packed - whole).square().mean().sqrt() / whole.std()
    expected = 0.026 * (5 * len(TINY.layout)) ** 0.5
    assert expected / 2 < error < 2 * expected


def test_the_weights_take_a_byte_each(folder: Path) -> None:
    packed = sh2.load(folder, dtype=torch.bfloat16, fp8_weights=True)
    layers = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    codes = sum(layer.in_features * layer.out_features for layer in layers)
    units = sum(4 * layer.out_features for layer in layers)
    assert sum(buffer.nbytes for layer in layers for buffer in layer.buffers()) == codes + units
    assert {layer.bias.dtype for layer in layers if layer.bias is not None} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    assert packed(ids(9))[0].dtype is torch.bfloat16


def test_loading_never_holds_the_weights_of_many_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is read, only what other threads have at hand is there when the next one is asked for."""
    import gc
    import weakref

    source = open_model(folder)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(read):  # type: ignore[no-untyped-def]
        def reading() -> Tensor:
            nonlocal most
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            tensor = read()
            alive.append(weakref.ref(tensor))
            return tensor

        return reading

    tensors = {
        name: replace(lazy, read=watched(lazy.read), pieces=None)
        if name.endswith("weight") and "blocks" in name
        else lazy
        for name, lazy in source.tensors.items()
    }
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    build(replace(source, tensors=tensors), [torch.device("cpu")], label="it", fp8_weights=True)
    assert len(alive) == sum(name.endswith("weight") and "blocks" in name for name in tensors)
    assert most <= 2


@pytest.mark.parametrize("stored", [False, True])
@torch.no_grad()
def test_a_model_trained_in_fp8_keeps_its_projections_as_they_run(stored: bool, tmp_path: Path) -> None:
    """To the bit: its input projections are what they are with the whole weight, and only the others are rounded."""
    model = StripedHyena2(FP8_TINY, seed=2).eval()
    if stored:
        for block in model.blocks[:3]:
            block.mixer.input.fp8_scales = torch.tensor([20.0, 700.0])
    save_model(model, tmp_path / "model")
    whole, packed = (sh2.load(tmp_path / "model", fp8_weights=fp8) for fp8 in (False, True))
    assert (precision_of(whole), precision_of(packed)) == ("fp8-emulated", "fp8-weights")
    assert products_of(packed) == "fp8-emulated"
    x_BLD = torch.randn(2, 7, 64)
    for one, other in zip(whole.blocks[:3], packed.blocks[:3], strict=True):
        assert isinstance(other.mixer.input, PackedInputProjection)
        assert torch.equal(one.mixer.input(x_BLD), other.mixer.input(x_BLD))
    assert type(packed.blocks[3].mixer.input) is PackedLinear


def test_a_model_in_memory_is_packed_as_one_that_is_loaded(folder: Path) -> None:
    packed, other = sh2.load(folder, fp8_weights=True), sh2.load(folder)
    pack_layers(other.blocks, trained_in_fp8=False)
    want, found = packed.state_dict(), other.state_dict()
    assert list(want) == list(found)
    assert all(torch.equal(want[name], found[name]) for name in want)


def test_a_cast_leaves_codes_and_units(folder: Path) -> None:
    packed = sh2.load(folder, fp8_weights=True)
    before = {name: tensor.clone() for name, tensor in packed.named_buffers()}
    packed.to(torch.bfloat16)
    assert all(torch.equal(before[name], tensor) for name, tensor in packed.named_buffers())


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp8", "fp8-emulated"])
def test_other_precisions_are_refused(folder: Path, precision: str) -> None:
    packed = sh2.load(folder, fp8_weights=True)
    with pytest.raises(
        Sh2Error, match=rf"weights are kept in FP8 cannot run in {precision}: their numbers are rounded"
    ):
        packed.use_precision(precision)
    assert precision_of(packed.use_precision("auto").use_precision("fp8-weights")) == "fp8-weights"


def test_a_whole_model_is_not_packed_later_and_a_packed_one_is_not_saved(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Sh2Error, match="this model was loaded with its weights as they are") as raised:
        sh2.load(folder).use_precision("fp8-weights")
    assert "fp8_weights=True" in raised.value.__notes__[0]
    with pytest.raises(Sh2Error, match="a model whose weights are kept in FP8 is not saved: they are rounded"):
        save_model(sh2.load(folder, fp8_weights=True), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@torch.no_grad()
def test_samples_are_those_of_the_rounded_weights(folder: Path) -> None:
    packed = sh2.load(folder, fp8_weights=True)
    assert is_packed(packed)
    given = ["ACGTACGT", "TTT"]
    written = [sh2.generate(model, given, length=20, temperature=0) for model in (packed, numbers(packed))]
    assert [one.ids.tolist() for one in written[0]] == [other.ids.tolist() for other in written[1]]


@torch.no_grad()
def test_blocks_on_several_devices_and_any_backend(folder: Path) -> None:
    packed, spread = (sh2.load(folder, device=device, fp8_weights=True) for device in ("cpu", "cpu+cpu"))
    torch.testing.assert_close(packed(ids(40))[0], spread.use_backend("reference")(ids(40))[0])


@torch.no_grad()
def test_codes_are_streamed_as_they_are(folder: Path) -> None:
    packed = sh2.load(folder, fp8_weights=True)
    want, _ = packed(ids(40))
    stream(packed.blocks, [0, 1, 3], torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(packed(ids(40))[0], want)


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_decodes_from_bytes(tmp_path: Path) -> None:
    config = replace(TINY, width=256, mlp_width=512, layout="SML*" * 2, num_heads=4)
    save_model(StripedHyena2(config, seed=1), tmp_path / "model")
    packed = sh2.load(tmp_path / "model", device="cuda", dtype=torch.bfloat16, fp8_weights=True)
    exact = numbers(packed).cuda()
    logits, state = packed(ids(50).cuda())
    want, other = exact(ids(50).cuda())
    assert relative_error(logits, want) < 0.05  # as plain bfloat16 is
    for token in ids(5)[0].cuda():
        one, state = packed.step(token[None], state)
        two, other = exact.step(token[None], other)
        assert relative_error(one, two) < 0.05
    streamed = sh2.load(tmp_path / "model", device="cuda+cpu", dtype=torch.bfloat16, fp8_weights=True)
    assert relative_error(streamed(ids(50).cuda())[0], logits) < 0.03
