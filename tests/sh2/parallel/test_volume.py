"""What every method sends, counted in one process that believes to be one of four."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from sh2.model import StripedHyena2
from sh2.parallel import parallelise
from sh2.parallel.exchange import AllGather, AllToAll, Exchange, Flight, Route, Turn
from tests.sh2.parallel.cases import STRIPED

WIDTH, TAPS, MODES = STRIPED.width, STRIPED.mr_taps, STRIPED.num_modes
RANKS = 4


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers that were given to exchanges, exchange by exchange."""
    counts: list[int] = []

    def counted(begin: Callable[[Exchange, Sequence[Tensor]], Flight]) -> Callable[..., Flight]:
        def count(self: Exchange, tensors: Sequence[Tensor]) -> Flight:
            counts.append(sum(tensor.numel() for tensor in tensors))
            return begin(self, tensors)

        return count

    for kind in (Route, AllToAll, AllGather, Turn):
        monkeypatch.setattr(kind, "begin", counted(kind.begin))
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=RANKS)
    yield counts
    dist.destroy_process_group()


@pytest.mark.parametrize("length", [64, 256])
@pytest.mark.parametrize(
    ("layout", "convolution", "per_token", "beside"),
    [
        # two rows of the projection and the gated inputs that the filter looks back over
        ("M", "state", 0, [2 * 3 * WIDTH + (TAPS - 1) * WIDTH]),
        ("L", "state", 0, [2 * 3 * WIDTH, WIDTH * MODES]),
        ("M", "p2p", 0, [(TAPS + 1) * 3 * WIDTH]),
        ("M", "p2p-overlapped", 0, [(TAPS + 1) * 3 * WIDTH]),
        # the projection goes, the output comes back
        ("M", "a2a", 4 * WIDTH, []),
        ("L", "a2a-pipelined", 4 * WIDTH, []),
        # two complex transforms of the inputs and the filter, forward, and one of the product, back, in two stages each
        ("L", "p2p-fft", 2 * (2 * 2 * 2 + 2 * 2) * WIDTH, [2 * 3 * WIDTH]),
        # keys and values to each of the others
        ("*", "state", 3 * 2 * WIDTH, []),
    ],
)
def test_numbers_sent(
    layout: str, convolution: str, per_token: int, beside: list[int], length: int, sent: list[int]
) -> None:
    model = StripedHyena2(replace(STRIPED, layout=layout))
    parallelise(model, convolution=convolution)
    with torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.int64))
    assert sum(sent) == per_token * length + sum(beside)
