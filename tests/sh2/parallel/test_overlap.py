"""What FIR filters send travels while the piece is run, forward and backward, and nothing of its size is copied."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from kernels import FirState
from sh2.parallel import halo
from sh2.parallel.exchange import Flight, Ranks, Route
from sh2.parallel.halo import Operator
from sh2.parallel.sharding import Shards
from tests.sh2.parallel.cases import host_runs_ahead, in_processes

LENGTH, WIDTH = 32, 4
FILTERS = (torch.ones(3 * WIDTH, 3), None, torch.ones(2, 7), None)
BORDER = 8  # rows that the two filters look back over


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """The second of three processes, of which there are no others."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    assert dist.group.WORLD is not None
    yield Ranks(dist.group.WORLD, Shards(rank=1, ranks=3))
    dist.destroy_process_group()


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """When things were sent, and when they were waited for."""
    lines: list[str] = []
    begin, land = Route.begin, Flight.land

    def told_begin(self: Route, tensors: Sequence[Tensor]) -> Flight:
        lines.append("send")
        return begin(self, tensors)

    def told_land(self: Flight) -> tuple[Tensor, ...]:
        lines.append("wait")
        return land(self)

    monkeypatch.setattr(Route, "begin", told_begin)
    monkeypatch.setattr(Flight, "land", told_land)
    return lines


class Run(torch.autograd.Function):
    """An operator's outputs, which are in memory of their own as its gradients are."""

    @staticmethod
    def forward(ctx: Any, diary: list[str], places: set[int], z: Tensor, state: Tensor | None) -> Tensor:
        ctx.diary, ctx.places, ctx.state = diary, places, state
        diary.append(f"run {z.shape[1]} rows")
        return z[..., :WIDTH].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor | None]:
        (dy,) = grads
        ctx.diary.append(f"run {dy.shape[1]} rows back")
        dz = torch.cat([dy] * 3, dim=2)
        ctx.places |= {dy.data_ptr(), dz.data_ptr()}
        return None, None, dz, None if ctx.state is None else torch.ones_like(ctx.state)


def operator_of(diary: list[str], places: set[int]) -> Operator:
    def operator(z: Tensor, *arguments: Any) -> tuple[Tensor, FirState]:
        state = arguments[-1]
        y = Run.apply(diary, places, z, None if state is None else state.inner_BPD)
        return y, FirState(z[:, -2:], z[:, -6:, :WIDTH])

    return operator


@pytest.mark.parametrize("convolve", [halo.by_state, halo.by_halo_overlapped])
def test_the_piece_runs_between_sending_and_waiting(
    convolve: Callable[..., Tensor], ranks: Ranks, diary: list[str]
) -> None:
    places: set[int] = set()

    z = torch.randn(1, LENGTH, 3 * WIDTH, requires_grad=True)
    y = convolve(ranks, operator_of(diary, places), FILTERS, z * 1)
    there = list(diary)
    diary.clear()
    dy = torch.randn_like(y)
    y.backward(dy)

    whole = f"run {LENGTH} rows"
    assert [line for line in there if line in ("send", "wait", whole)] == ["send", whole, "wait"]
    assert f"run {BORDER} rows" in there[there.index("wait") :]
    assert [line for line in diary if line in ("send", "wait", f"{whole} back")] == ["send", f"{whole} back", "wait"]
    assert dy.data_ptr() in places


def test_gradients_of_a_piece_stay_where_they_are_made(ranks: Ranks) -> None:
    places: set[int] = set()

    seen: list[int] = []
    z = torch.randn(1, LENGTH, 3 * WIDTH, requires_grad=True)
    whole = z * 1
    whole.register_hook(lambda dz: seen.append(dz.data_ptr()))
    y = halo.by_state(ranks, operator_of([], places), FILTERS, whole)
    dy = torch.randn_like(y)
    kept = dy.clone()
    y.backward(dy)
    assert seen[0] in places
    assert torch.equal(dy, kept)


@pytest.mark.gpu
def test_the_host_waits_for_no_exchange(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has fewer than two GPUs")
    in_processes(2, host_runs_ahead, folder=tmp_path, device="cuda")
