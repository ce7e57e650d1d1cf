"""The rotation of heads against complex numbers in float64; the kernel in Triton's interpreter on a CPU."""

import pytest
import torch
from torch import Tensor

from kernels.backend import Backend
from kernels.rotary import rotate
from tests.kernels.comparison import DEVICE
from tests.kernels.definitions import relative_error

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(B: int, L: int, H: int, J: int, C: int, angles: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A projection of H heads of queries and J of keys and values each, and the angles of `angles` rows."""
    generator = torch.Generator().manual_seed(B * L + H + C)
    z = torch.randn(B, L, (H + 2 * J) * C, generator=generator)
    turns = torch.rand(angles, L, 1, C // 2, generator=generator, dtype=torch.float64) * 1000
    return z.to(DEVICE, dtype), turns.to(DEVICE)


def by_definition(x: Tensor, turns: Tensor) -> Tensor:
    turned = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(turns), turns)
    return torch.cat([turned.real, turned.imag], dim=-1)


def check(B: int, L: int, H: int, J: int, C: int, angles: int, dtype: torch.dtype, backend: Backend) -> None:
    z, turns = inputs(B, L, H, J, C, angles, dtype)
    cos, sin = turns.cos().float(), turns.sin().float()
    z = z.requires_grad_()
    q, k, v = z.unflatten(-1, (H + 2 * J, C)).split([H, J, J], dim=2)
    dz = torch.zeros_like(z, dtype=torch.float64).unflatten(-1, (H + 2 * J, C))
    for part, first in ((q, 0), (k, H)):
        y = rotate(part, cos, sin, backend=backend)
        assert (y.shape, y.dtype) == (part.shape, dtype)
        assert relative_error(y, by_definition(part, turns)) < TOLERANCE[dtype]
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
        (gradient,) = torch.autograd.grad(y, z, dy, retain_graph=True)
        # a rotation's gradient is the rotation back
        dz[:, :, first : first + part.shape[2]] = by_definition(dy, -turns)
        assert relative_error(gradient, dz.flatten(2)) < TOLERANCE[dtype]
        dz.zero_()
    assert v.shape[2] == J


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("B", "L", "H", "J", "C", "angles"),
    [(1, 1, 1, 1, 2, 1), (2, 5, 3, 1, 6, 1), (3, 4, 9, 3, 16, 3), (1, 7, 2, 2, 128, 1)],
)
def test_heads_turn_as_complex_numbers_do(
    B: int, L: int, H: int, J: int, C: int, angles: int, dtype: torch.dtype, backend: Backend
) -> None:
    check(B, L, H, J, C, angles, dtype, backend)


def test_channels_apart_are_said_and_left_to_the_reference() -> None:
    z, turns = inputs(1, 3, 2, 1, 8, 1, torch.float32)
    x = z.unflatten(-1, (4, 8)).mT.contiguous().mT
    cos, sin = turns.cos().float(), turns.sin().float()
    with pytest.raises(ValueError, match="the channels of a head do not lie side by side"):
        rotate(x, cos, sin, backend=Backend.TRITON)
    assert relative_error(rotate(x, cos, sin), by_definition(x, turns)) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("B", "L", "H", "J", "C", "angles"), [(1, 4097, 32, 32, 128, 1), (3, 129, 15, 3, 128, 3), (2, 1, 4, 4, 64, 1)]
)
def test_gpu_heads_of_every_shape(B: int, L: int, H: int, J: int, C: int, angles: int, dtype: torch.dtype) -> None:
    check(B, L, H, J, C, angles, dtype, Backend.TRITON)
