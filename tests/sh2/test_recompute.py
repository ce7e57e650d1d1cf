"""A backward that makes things again has the gradients of one that keeps them; and what training runs is `hidden`."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sh2 import rerun
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.recompute import Recompute, group_size
from sh2.train import windows
from sh2.train.loss import loss_sums
from tests.sh2.models import CONFIGS, tiny
from tests.sh2.test_train_loop import trainer

# torch's compiler warns of what it does itself
pytestmark = pytest.mark.filterwarnings("ignore")

LENGTH = 70


def gradients(model: StripedHyena2, recompute: Recompute, *, bf16: bool = False) -> list[torch.Tensor]:
    ids = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    model.use_recompute(recompute).zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        x_BLD = model.whole(ids)
    model.logits(x_BLD.float()).logsumexp(-1).square().mean().backward()
    return [x_BLD.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_whole_sequences_are_what_a_state_begins_with(name: str) -> None:
    model, ids = tiny(name), torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.whole(ids), model.hidden(ids)[0])


@pytest.mark.parametrize("recompute", [kind for kind in Recompute if kind is not Recompute.NONE])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_a_backward_that_keeps_everything(
    name: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerun, "PIECE", 48)  # pieces of 24 tokens a row, and a rest
    model = tiny(name)
    for bf16, tolerance in ((False, 1e-6), (True, 1e-2)):  # sums over pieces are rounded each, weights' to bfloat16
        kept, again = gradients(model, Recompute.NONE, bf16=bf16), gradients(model, recompute, bf16=bf16)
        assert torch.equal(kept[0], again[0])
        for one, other in zip(kept, again, strict=True):
            assert (one - other).norm() <= tolerance * one.norm()
            assert recompute is not Recompute.SELECTIVE or torch.equal(one, other)


class Products(TorchDispatchMode):
    """Counts the products that are really taken."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def count_products(model: StripedHyena2, recompute: Recompute) -> int:
    with Products() as products:
        gradients(model, recompute)
    return products.count


def test_what_is_kept_is_not_made_again() -> None:
    model = tiny("attention only")  # whose products are those of its linear layers: five a block, and the logits
    blocks, products = 2, 5
    none, selective, full, nested = (count_products(model, recompute) for recompute in Recompute)
    assert none == 3 * (blocks * products + 1)
    assert selective == none
    # what ends a half is not needed again
    assert full == none + blocks * (products - 2)
    # a group is one block here, of which the first half, two products, leads to the input of the second
    assert group_size(blocks) == 1
    assert nested == full + blocks * 2


def test_logits_in_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    ids = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)) - 0.2
    found = []
    for piece in (1000, 32):  # of both rows together
        monkeypatch.setattr(windows, "LOGITS_PIECE", piece)
        model.zero_grad()
        sums = windows._in_pieces(lambda x, *rest: loss_sums(model.logits(x), *rest), model.whole(ids), ids, weights)
        sums.weighted_nats.backward()
        found.append([*sums, *(parameter.grad.clone() for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recompute", ["selective", "full", "nested"])
def test_a_compiled_run_that_makes_things_again_has_the_same_losses(tmp_path, monkeypatch, recompute) -> None:
    from sh2.train import compilation

    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    settings = {"steps": 3, "valid_windows": 0, "save_every": 0}
    trainer(tmp_path / "plain", **settings).run()
    trainer(tmp_path / "again", compile=True, recompute=recompute, **settings).run()
    plain, again = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("plain", "again"))
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in (plain, again)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def streams_kept(model: StripedHyena2) -> float:
    """What `whole` keeps for its backward beside the weights, in tensors of the stream's size."""
    sizes: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        x_BLD = model.whole(torch.zeros(2, 500, dtype=torch.int64))
    return sum(sizes.values()) / x_BLD.nbytes


def test_a_stream_is_kept_for_each_half_or_for_each_group() -> None:
    none, _, full, nested = (streams_kept(tiny().use_recompute(recompute)) for recompute in Recompute)
    assert full == pytest.approx(8, abs=0.1)
    assert nested == pytest.approx(-(-4 // group_size(4)), abs=0.1)
    assert none > 5 * full


def test_a_graph_keeps_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from sh2.train import compilation

    monkeypatch.setattr(compilation, "BACKEND", "aot_eager_decomp_partition")
    kept = []
    for recompute in (Recompute.NONE, Recompute.SELECTIVE):
        torch._dynamo.reset()
        model = StripedHyena2(replace(CONFIGS["striped"], layout="*")).use_recompute(recompute)
        compilation.compile_blocks(model)
        kept.append(streams_kept(model))
    # inputs of both halves, the projection (3), what attention makes of it, gate and up (1.5 each); and sums
    assert kept[1] == pytest.approx(2 + 3 + 1 + 3, abs=0.5)
    assert kept[0] > 1.5 * kept[1]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(Sh2Error, match="unknown recompute `all`") as caught:
        tiny().use_recompute("all")
    assert caught.value.__notes__ == ["use none, selective, full, nested"]


def test_groups_are_about_as_many_as_keep_the_least() -> None:
    def kept(blocks: int, size: int) -> int:
        return -(-blocks // size) + 2 * size

    for blocks in (1, 4, 7, 25, 32, 50):
        least = min(kept(blocks, size) for size in range(1, blocks + 1))
        assert kept(blocks, group_size(blocks)) <= least + 1


def test_a_long_model_keeps_a_tensor_a_group() -> None:
    config = ModelConfig(width=16, layout="*" * 18, num_heads=2, mlp_width=24, se_groups=2, mr_groups=2)
    model = StripedHyena2(config).use_recompute("nested")
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        model.whole(torch.zeros(2, 9, dtype=torch.int64))
    assert kept.count((2, 9, 16)) == 18 // group_size(18) == 6
