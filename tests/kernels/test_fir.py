"""Causal filters on a CPU: oneDNN's convolutions, which float32 takes, against the sums and products of float64."""

import pytest
import torch
from torch import Tensor

from kernels.fir import channel_fir, grouped_fir
from kernels.fir.reference import _by_onednn
from tests.kernels.definitions import relative_error


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("with_past", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [32, 33, 127, 1000])
@pytest.mark.parametrize(
    ("channels", "groups", "taps"),
    [(1, 1, 3), (6, 6, 1), (64, 64, 3), (64, 4, 7), (48, 48, 14), (30, 2, 15), (32, 4, 128), (8, 8, 129), (6, 1, 256)],
)
def test_float32_is_float64_rounded(
    channels: int, groups: int, taps: int, length: int, batch: int, with_past: bool
) -> None:
    fir = channel_fir if groups == channels else grouped_fir
    inputs = [random(batch, length, channels), random(groups, taps)]
    if with_past:
        inputs.append(random(batch, taps - 1, channels))
    dy, dstate = random(batch, length, channels), random(batch, taps - 1, channels)
    found: list[list[Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        own = [x.to(dtype).requires_grad_(True) for x in inputs]
        y, state = fir(*own)
        assert y.dtype == state.dtype == dtype
        torch.autograd.backward((y, state), (dy.to(dtype), dstate.to(dtype)))
        found.append([y, state, *(x.grad for x in own)])
    assert _by_onednn(inputs[0].float())
    assert not _by_onednn(inputs[0])
    for one, exact in zip(*found, strict=True):
        if exact.numel():
            assert relative_error(one, exact) < 1e-5
