"""FP8 products of linear layers in training: what torchao computes, against roundings taken here; what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.train import fp8
from sh2.train.config import TrainConfig
from sh2.train.fp8 import check_fp8_linears, use_fp8_linears
from tests.sh2.models import TINY
from tests.sh2.test_train_loop import trainer

# torchao warns of what torch changed
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
LARGEST = 448.0


def rounded(x: Tensor, dim: int) -> Tensor:
    """x on the E4M3 grid, stretched by a power of two for the largest value along a dimension, in float64."""
    scale = torch.exp2(torch.floor(torch.log2(LARGEST / x.abs().amax(dim, keepdim=True).double())))
    return (x.double() * scale).float().to(torch.float8_e4m3fn).double() / scale


def converted(config=TINY) -> StripedHyena2:
    pytest.importorskip("torchao")
    model = StripedHyena2(config)
    use_fp8_linears(model, CPU, emulate=True)
    return model


def test_a_product_is_that_of_rounded_operands_and_so_are_its_gradients() -> None:
    layer = converted().blocks[0].feed_forward.gate
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(24, 32, generator=generator), torch.randn(24, 48, generator=generator)
    x.requires_grad_(True)
    y = layer(x)
    y.backward(dy)

    weight = layer.weight.detach()
    for found, expected in (
        (y, rounded(x.detach(), 1) @ rounded(weight, 1).T),
        (x.grad, rounded(dy, 1) @ rounded(weight, 0)),
        (layer.weight.grad, dy.double().T @ x.detach().double()),  # as precise as what comes in
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (y - torch.nn.functional.linear(x, layer.weight)).norm() > 0.01 * y.norm()


def test_nothing_that_is_saved_changes() -> None:
    plain, model = StripedHyena2(TINY), converted()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    assert len(plain.state_dict()) == len(model.state_dict())
    kinds = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if "Float8" in type(part).__name__}
    assert kinds == {"input", "output", "gate", "up", "down"}


def test_a_run_learns_in_fp8(tmp_path, monkeypatch) -> None:
    pytest.importorskip("torchao")
    emulated = fp8.use_fp8_linears
    monkeypatch.setattr("sh2.train.loop.use_fp8_linears", lambda model, device: emulated(model, device, emulate=True))
    model = StripedHyena2(replace(TINY, layout="SML*"))
    watcher = trainer(tmp_path, model=model, fp8_linears=True, steps=20, lr=1e-2, save_every=0)
    watcher.run()
    losses = [record.loss for record in watcher._observer.steps]
    assert losses[-1] < 0.5 * losses[0]


def test_without_the_package_it_is_named(monkeypatch) -> None:
    monkeypatch.setattr(fp8, "find_spec", lambda name: None)
    with pytest.raises(Sh2Error, match="FP8 linears need the package torchao, which is not installed") as caught:
        use_fp8_linears(StripedHyena2(TINY), CPU)
    assert caught.value.__notes__ == [
        "install it with `pip install 'evo-sh2[float8]'`, or train without `--fp8-linears`"
    ]


def test_without_the_hardware_that_is_said() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(Sh2Error, match="FP8 linears cannot run here: the device `cpu` has no FP8 products"):
        check_fp8_linears(StripedHyena2(TINY), CPU)


def test_sizes_that_it_does_not_take_are_named(monkeypatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(fp8, "fp8_lacks", lambda device, width: None)
    model = StripedHyena2(replace(TINY, mlp_width=40))
    with pytest.raises(Sh2Error, match=r"multiples of 16: `blocks\.0\.feed_forward\.gate` is 32 by 40"):
        check_fp8_linears(model, CPU)


def test_adapters_are_not_trained_so() -> None:
    with pytest.raises(Sh2Error, match="train fields `fp8_linears` and `lora_rank` cannot both be given"):
        TrainConfig.from_dict({"steps": 1, "fp8_linears": True, "lora_rank": 4})


@pytest.mark.gpu
def test_hardware_computes_what_is_emulated() -> None:
    pytest.importorskip("torchao")
    shape = replace(TINY, width=128, mlp_width=256)
    ids = torch.randint(256, (2, 512), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = []
    for emulate in (False, True, None):
        model = StripedHyena2(shape).cuda()
        if emulate is not None:
            use_fp8_linears(model, torch.device("cuda"), emulate=emulate)
        with torch.autocast("cuda", torch.bfloat16):
            x_BLD = model.whole(ids)
        x_BLD.float().square().mean().backward()
        found.append([x_BLD.float(), model.blocks[0].mixer.input.weight.grad])
    # sums in another order turn some roundings around: far fewer than there are
    for hardware, emulated, bf16 in zip(*found, strict=True):
        assert (hardware - emulated).norm() < 0.5 * (emulated - bf16).norm()
