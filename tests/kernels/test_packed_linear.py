"""A packed weight's product against its definition in float64; the kernel in Triton's interpreter on a CPU."""

import pytest
import torch
from torch import Tensor

from kernels import pack, packed_linear
from kernels.backend import Backend
from tests.kernels.comparison import DEVICE
from tests.kernels.definitions import relative_error

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(rows: tuple[int, ...], D: int, E: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(D + E)
    sizes = torch.rand(E, 1, generator=generator) * 30
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((*rows, D), (E, D), (E,)))
    codes, units = pack(weight * sizes)
    return x.to(DEVICE, dtype), codes.to(DEVICE), units.to(DEVICE), bias.to(DEVICE, dtype)


def by_definition(x: Tensor, codes: Tensor, units: Tensor, bias: Tensor | None) -> Tensor:
    weight = codes.view(torch.float8_e4m3fn).double() * units.double()[:, None]
    y = torch.einsum("...d,ed->...e", x.double(), weight)
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [(1, 1), (3,), (8, 1), (9, 1), (2, 3, 5)], ids=str)
@pytest.mark.parametrize(("D", "E"), [(32, 7), (1, 1), (1100, 12)])
@torch.no_grad()
def test_products_are_as_defined(rows: tuple[int, ...], D: int, E: int, dtype: torch.dtype, backend: Backend) -> None:
    x, codes, units, bias = inputs(rows, D, E, dtype)
    for added in (None, bias):
        y = packed_linear(x, codes, units, added, backend=backend)
        assert (y.shape, y.dtype) == ((*rows, E), dtype)
        assert relative_error(y, by_definition(x, codes, units, added)) < TOLERANCE[dtype]


@torch.no_grad()
def test_a_row_does_not_depend_on_those_beside_it() -> None:
    x, codes, units, _ = inputs((8,), 300, 20, torch.float32)
    together = packed_linear(x, codes, units, backend=Backend.TRITON)
    alone = [packed_linear(row[None], codes, units, backend=Backend.TRITON) for row in x]
    assert torch.equal(together, torch.cat(alone))


def test_gradients_of_the_input_are_those_of_the_numbers() -> None:
    x, codes, units, bias = inputs((2, 3), 5, 4, torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: packed_linear(x, codes, units.double(), bias), (x,))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize(("D", "E"), [(4096, 12_288), (8192, 8192), (22_528, 8192), (1920, 5760)])
@torch.no_grad()
def test_gpu_weights_of_models(rows: int, D: int, E: int) -> None:
    x, codes, units, _ = inputs((rows, 1), D, E, torch.bfloat16)
    y = packed_linear(x, codes, units, backend=Backend.TRITON)
    assert relative_error(y, by_definition(x, codes, units, None)) < TOLERANCE[torch.bfloat16]
