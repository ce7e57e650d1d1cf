"""FP8 products of linear layers in training: against roundings taken here, and against torchao's; what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train import compilation, fp8
from sh2.train.compilation import compile_blocks
from sh2.train.config import TrainConfig
from sh2.train.fp8 import Fp8InputProjection, Fp8Linear, check_fp8_linears, use_fp8_linears
from tests.kernels.definitions import relative_error
from tests.sh2.models import CONFIGS, TINY
from tests.sh2.test_train_loop import trainer

# torch's compiler and torchao warn of what torch changed
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
LARGEST = 448.0
BIASED = CONFIGS["grouped heads, biases, untied"]


def rounded(x: Tensor) -> Tensor:
    """x on the E4M3 grid, stretched so that the largest value is its largest number, in float64."""
    largest = x.abs().amax().float()
    scale = torch.full_like(largest, LARGEST) / largest  # a number over a tensor would round twice
    return (x.float() * scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).double() / scale.double()


def converted(config=TINY) -> StripedHyena2:
    model = StripedHyena2(config)
    use_fp8_linears(model, CPU, emulate=True)
    return model


def layer_of(inputs: int, outputs: int, *, bias: bool = False, emulate: bool = True, device: str = "cpu") -> Fp8Linear:
    torch.manual_seed(0)
    layer = Fp8Linear(inputs, outputs, bias=bias).to(device)
    layer.emulate = emulate
    return layer


def operands(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Inputs as a norm leaves them, and gradients of tokens of very different sizes."""
    generator = torch.Generator().manual_seed(rows)
    x, dy, sizes = (torch.randn(rows, columns, generator=generator) for columns in (inputs, outputs, 1))
    return x.to(device, dtype), (dy * sizes.mul(1.5).exp()).to(device, dtype)


def results(layer: nn.Linear, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """y, and the gradients of everything."""
    x = x.clone().requires_grad_(True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype is torch.bfloat16):
        y = layer(x)
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "dweight": layer.weight.grad}
    return found if layer.bias is None else found | {"dbias": layer.bias.grad}


def model_results(model: StripedHyena2, ids: Tensor, *, bf16: bool = False) -> list[Tensor]:
    """What comes out of the blocks, and the gradients of all parameters."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        x_BLD = model.whole(ids)
    model.logits(x_BLD.float()).logsumexp(-1).square().mean().backward()
    return [x_BLD.detach().float(), *(parameter.grad.float() for parameter in model.parameters())]


def some_ids(device: str = "cpu", rows: int = 2, length: int = 70) -> Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 24, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_rounded_operands_and_so_are_its_gradients(
    bias: bool, rows: int, dtype: torch.dtype
) -> None:
    layer = layer_of(32, 48, bias=bias)
    x, dy = operands(rows, 32, 48, dtype)
    found = results(layer, x, dy)

    weight = layer.weight.detach().to(dtype)
    expected = {
        "y": (rounded(x) @ rounded(weight).T).to(dtype) + (layer.bias.detach().to(dtype) if bias else 0),
        "dx": rounded(dy) @ rounded(weight),
        "dweight": rounded(dy).T @ rounded(x),
    }
    if bias:
        expected["dbias"] = dy.double().sum(0)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].dtype is (torch.float32 if name in ("dweight", "dbias") else dtype)
        narrow = dtype is torch.bfloat16 and name != "dweight"  # whose sums stay float32, as the weight is
        assert relative_error(found[name], wanted) < (2**-8 if narrow else 1e-6), name


def test_the_numbers_are_those_of_torchao() -> None:
    """Its recipe of one scale for a tensor, with gradients in E4M3."""
    config = pytest.importorskip("torchao.float8.config")
    from torchao.float8.float8_linear import Float8Linear

    layer, (x, dy) = layer_of(64, 96), operands(80, 64, 96, torch.float32)
    narrow = config.CastConfig(target_dtype=torch.float8_e4m3fn)
    recipe = config.Float8LinearConfig(
        emulate=True, cast_config_grad_output=narrow, cast_config_grad_output_for_grad_weight=narrow
    )
    other = Float8Linear.from_float(layer_of(64, 96), recipe)
    found, wanted = results(layer, x, dy), results(other, x, dy)
    for name, tensor in found.items():
        assert relative_error(tensor, wanted[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_differs_from_a_plain_layer_by_the_rounding_of_its_operands(dtype: torch.dtype) -> None:
    layer, (x, dy) = layer_of(128, 256, bias=True), operands(512, 128, 256, dtype)
    plain = nn.Linear(128, 256)
    plain.load_state_dict(layer.state_dict())
    found, wanted = results(layer, x, dy), results(plain, x, dy)
    for name, tensor in wanted.items():
        assert found[name].dtype is tensor.dtype
        noise = relative_error(found[name], tensor)
        # a number's rounding to 4 bits is 0.026 of it, and every product has two
        assert noise < (1e-6 if name == "dbias" else 0.045), name
        assert name == "dbias" or noise > 0.03, name


def test_gradients_are_made_where_they_are_wanted() -> None:
    layer, (x, dy) = layer_of(32, 48), operands(24, 32, 48, torch.float32)
    whole = results(layer, x, dy)
    layer.weight.grad = None
    layer.weight.requires_grad_(False)
    frozen = results(layer, x, dy)
    assert frozen["dweight"] is None
    assert torch.equal(frozen["dx"], whole["dx"])
    layer.weight.requires_grad_(True)
    layer(x).backward(dy)
    assert torch.equal(layer.weight.grad, whole["dweight"])
    with torch.no_grad():
        assert torch.equal(layer(x), whole["y"])


def test_what_is_kept_for_the_backward_is_a_byte_a_number_and_no_weight() -> None:
    layer, (x, _) = layer_of(32, 48), operands(24, 32, 48, torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    kept = [tensor for tensor in kept if tensor.numel() > 1 and tensor.data_ptr() != layer.weight.data_ptr()]
    assert [(tensor.dtype, tensor.shape) for tensor in kept] == [(torch.float8_e4m3fn, (32, 32))]


@pytest.mark.parametrize("stored", [False, True])
def test_nothing_that_is_saved_changes(stored: bool) -> None:
    plain, model = (StripedHyena2(TINY) for _ in range(2))
    for each in (plain, model):
        if stored:  # a model trained in FP8, trained on
            each.blocks[0].mixer.input.fp8_scales = torch.tensor([3.0, 5.0])
    use_fp8_linears(model, CPU, emulate=True)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    kinds = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, Fp8Linear)}
    assert kinds == {"input", "output", "gate", "up", "down"}
    assert isinstance(model.blocks[0].mixer.input, Fp8InputProjection)
    assert model.bfloat16().blocks[0].mixer.input.weight.dtype is torch.bfloat16
    assert not stored or model.blocks[0].mixer.input.fp8_scales.dtype is torch.float32


@pytest.mark.parametrize("bf16", [False, True])
def test_a_compiled_model_has_the_numbers_of_an_eager_one(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of graphs without breaks: `compile_blocks` demands them."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")  # the C++ compiler takes a minute
    torch._dynamo.reset()
    eager, compiled = converted(BIASED), converted(BIASED)
    compile_blocks(compiled)
    found, wanted = (model_results(model, some_ids(), bf16=bf16) for model in (compiled, eager))
    for one, other in zip(found, wanted, strict=True):
        # graphs round elsewhere than operations do: what lies at a border takes the next code
        assert relative_error(one, other) < (0.2 if bf16 else 1e-6)


@pytest.mark.parametrize("recompute", ["selective", "full", "nested"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_made_again_is_what_was(compiled: bool, recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    model = converted(BIASED).use_recompute(recompute)
    if compiled:
        compile_blocks(model)
    for one, other in zip(model_results(model, some_ids()), model_results(converted(BIASED), some_ids()), strict=True):
        assert relative_error(one, other) < 1e-6


def test_a_run_learns_in_fp8_as_it_does_in_bf16(tmp_path, monkeypatch) -> None:
    emulated = fp8.use_fp8_linears
    monkeypatch.setattr("sh2.train.loop.use_fp8_linears", lambda model, device: emulated(model, device, emulate=True))
    losses = {}
    for fp8_linears in (False, True):
        model = StripedHyena2(replace(TINY, layout="SML*"))
        settings = {"fp8_linears": fp8_linears, "precision": "bf16", "steps": 30, "lr": 1e-2, "save_every": 0}
        watcher = trainer(tmp_path / str(fp8_linears), model=model, **settings)
        watcher.run()
        losses[fp8_linears] = torch.tensor([record.loss for record in watcher._observer.steps])
    assert losses[True][-1] < 0.5 * losses[True][0]
    assert (losses[True] - losses[False]).abs().max() < 0.1 * losses[False][0]
    assert not torch.equal(losses[True], losses[False])


def test_without_the_hardware_that_is_said() -> None:
    with pytest.raises(Sh2Error, match="FP8 linears cannot run here: the device `cpu` has no FP8 products"):
        use_fp8_linears(StripedHyena2(TINY), CPU)


@pytest.mark.parametrize("emulate", [False, True])
def test_sizes_that_it_does_not_take_are_named(emulate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "fp8_lacks", lambda device, width: None)
    model = StripedHyena2(replace(TINY, mlp_width=40))
    with pytest.raises(Sh2Error, match=r"multiples of 16: `blocks\.0\.feed_forward\.gate` is 32 by 40"):
        use_fp8_linears(model, CPU, emulate=emulate)
    with pytest.raises(Sh2Error, match="train without `--fp8-linears`") if emulate else pytest.raises(Sh2Error):
        check_fp8_linears(model, CPU)


def test_adapters_are_not_trained_so() -> None:
    with pytest.raises(Sh2Error, match="train fields `fp8_linears` and `lora_rank` cannot both be given"):
        TrainConfig.from_dict({"steps": 1, "fp8_linears": True, "lora_rank": 4})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 300, 32_768])
def test_gpu_a_layer_on_hardware_is_the_emulated_one_but_for_its_sums(rows: int, dtype: torch.dtype) -> None:
    x, dy = operands(rows, 1920, 512, dtype, "cuda")
    real, emulated = (
        results(layer_of(1920, 512, bias=True, emulate=emulate, device="cuda"), x, dy) for emulate in (False, True)
    )
    for name, tensor in emulated.items():
        assert real[name].dtype is tensor.dtype
        # the codes are the same: what is left are fast sums and a rounding to bfloat16, and the wider sums of dW
        assert relative_error(real[name], tensor) < (2e-3 if name == "dweight" else 1e-2), name


@pytest.mark.gpu
def test_gpu_every_layer_of_a_model_computes_what_is_emulated() -> None:
    model = StripedHyena2(replace(BIASED, width=128, mlp_width=256)).cuda()
    use_fp8_linears(model, torch.device("cuda"), emulate=True)
    seen: list[tuple[Fp8Linear, Tensor, Tensor]] = []

    def keep(layer: Fp8Linear, inputs: tuple[Tensor], y: Tensor) -> None:
        y.register_hook(lambda dy: seen.append((layer, inputs[0].detach(), dy)))

    hooks = [part.register_forward_hook(keep) for part in model.modules() if isinstance(part, Fp8Linear)]
    model_results(model, some_ids("cuda", length=512), bf16=True)
    assert len(seen) == len(hooks) == 5 * len(model.blocks)
    for hook in hooks:
        hook.remove()
    for layer, x, dy in seen:
        both = []
        for layer.emulate in (False, True):
            layer.zero_grad()
            both.append(results(layer, x, dy))
        for name, tensor in both[1].items():
            assert relative_error(both[0][name], tensor) < 1e-2, name


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_a_step_on_hardware_is_as_far_from_bf16_as_an_emulated_one(compiled: bool) -> None:
    """Sums in another order move a few numbers to the next code, and those all that follow: noise alone is alike."""
    torch._dynamo.reset()
    shape, found = replace(TINY, width=128, mlp_width=256), []
    for emulate in (False, True, None):
        model = StripedHyena2(shape).cuda()
        if emulate is not None:
            use_fp8_linears(model, torch.device("cuda"), emulate=emulate)
        if compiled and emulate is False:
            compile_blocks(model)
        found.append(model_results(model, some_ids("cuda", length=512), bf16=True))
    for hardware, emulated, bf16 in zip(*found, strict=True):
        if hardware.ndim in (2, 3):  # smaller ones have too few numbers for that
            assert relative_error(hardware, bf16) == pytest.approx(relative_error(emulated, bf16), rel=0.3)
