"""torch.compile takes the model, its state and the loss as one graph, whatever runs the operators, and numbers stay."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from sh2.model import StripedHyena2
from sh2.train.loss import LossSums, loss_sums
from tests.sh2.models import TINY

# torch's compiler warns of what it does itself
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = replace(TINY, width=16, mlp_width=24, se_groups=2, mr_groups=1, num_modes=4)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def random_ids(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(("backend", "autocast", "goes_on"), [("reference", False, False), ("triton", True, True)])
def test_the_loss_and_its_gradients_are_one_graph(backend: str, autocast: bool, goes_on: bool) -> None:
    model = StripedHyena2(SMALL).use_backend(backend)
    ids_BL, weights_BL = random_ids(10), torch.linspace(0, 1, 9)[None]
    state = model(random_ids(5))[1] if goes_on else None

    def loss() -> LossSums:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits_BLV, _ = model(ids_BL[:, :-1], state)
        return loss_sums(logits_BLV, ids_BL[:, 1:], weights_BL)

    def with_gradients(function: Callable[[], LossSums]) -> list[torch.Tensor]:
        sums = function()
        return [*sums, *torch.autograd.grad(sums.weighted_nats, list(model.parameters()), retain_graph=True)]

    compiled = with_gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, with_gradients(loss), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_one_graph_serves_many_lengths() -> None:
    model = StripedHyena2(SMALL).use_backend("triton")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for length in (5, 9):
        ids_BL = random_ids(length, rows=2)
        torch.testing.assert_close(compiled(ids_BL)[0], model(ids_BL)[0], rtol=1e-5, atol=1e-6)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@torch.no_grad()
def test_blocks_of_a_kind_share_a_graph() -> None:
    model = StripedHyena2(replace(SMALL, layout="SML*SMLSML*"))
    expected = model(random_ids(9))[0]
    counter = CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(fullgraph=True, backend=counter)
    torch.testing.assert_close(model(random_ids(9))[0], expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 4
