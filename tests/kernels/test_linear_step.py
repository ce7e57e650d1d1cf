"""Linear layers of few rows, with what surrounds them, against their definition in float64; interpreted on a CPU."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kernels import few_rows, gated_step, linear_step
from kernels.backend import Backend
from tests.kernels.comparison import DEVICE
from tests.kernels.definitions import relative_error

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}
BACKENDS = [Backend.TRITON, Backend.REFERENCE]
EPS = 0.05

pytestmark = pytest.mark.usefixtures("poisoned")


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)


def by_definition(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    x, weight = x.double().cpu(), weight.double().cpu()
    if scale is not None:
        x = x / (x.square().mean(dim=-1, keepdim=True).sqrt() + EPS) * scale.double().cpu()
    return torch.einsum("...d,ed->...e", x, weight)


def check_linear(M: int, D: int, E: int, dtype: torch.dtype, backend: Backend) -> None:
    """With and without each of the bias, the norm and what the outputs are added to."""
    x, weight = random(M, 1, D, dtype=dtype), random(E, D, dtype=dtype) / D**0.5
    for has_bias, has_norm, has_sum in itertools.product([False, True], repeat=3):
        bias = random(E, dtype=dtype, seed=1) if has_bias else None
        scale = random(D, dtype=dtype, seed=2) if has_norm else None
        onto = random(M, 1, E, dtype=dtype, seed=3) if has_sum else None
        y = linear_step(x, weight, bias, scale_D=scale, eps=EPS, onto_XE=onto, backend=backend)
        want = by_definition(x, weight, scale)
        want = want + sum(tensor.double().cpu() for tensor in (bias, onto) if tensor is not None)
        assert (y.shape, y.dtype) == ((M, 1, E), dtype)
        assert relative_error(y.cpu(), want) < TOLERANCE[dtype]


def check_gated(M: int, D: int, I: int, dtype: torch.dtype, backend: Backend) -> None:  # noqa: E741
    x, scale = random(M, 1, D, dtype=dtype), random(D, dtype=dtype, seed=2)
    gate, up = (random(I, D, dtype=dtype, seed=seed) / D**0.5 for seed in (4, 5))
    g, u = by_definition(x, gate, scale), by_definition(x, up, scale)
    for activation, act in {
        "gelu": g * 0.5 * (1 + torch.special.erf(g / math.sqrt(2))),
        "silu": g * torch.special.expit(g),
        "identity": g,
    }.items():
        y = gated_step(x, gate, up, scale_D=scale, eps=EPS, activation=activation, backend=backend)
        assert (y.shape, y.dtype) == ((M, 1, I), dtype)
        assert relative_error(y.cpu(), act * u) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("M", "D", "E", "dtype"),
    [
        (1, 1, 1, torch.float32),
        (2, 33, 7, torch.float32),
        (4, 1025, 6, torch.float32),
        (3, 2048, 5, torch.float16),
        (1, 300, 9, torch.bfloat16),
    ],
)
def test_layers_with_what_surrounds_them(M: int, D: int, E: int, dtype: torch.dtype, backend: Backend) -> None:
    check_linear(M, D, E, dtype, backend)
    check_gated(M, D, E, dtype, backend)


def test_a_row_s_sums_do_not_depend_on_the_others() -> None:
    x, weight = random(4, 1, 1500, dtype=torch.float32), random(6, 1500, dtype=torch.float32)
    scale = random(1500, dtype=torch.float32)
    settings = {"scale_D": scale, "eps": EPS, "backend": Backend.TRITON}
    together = linear_step(x, weight, **settings)  # type: ignore[arg-type]
    gates = gated_step(x, weight, weight, activation="silu", **settings)  # type: ignore[arg-type]
    for m in range(4):
        assert torch.equal(together[m], linear_step(x[m], weight, **settings))  # type: ignore[arg-type]
        alone = gated_step(x[m], weight, weight, activation="silu", **settings)  # type: ignore[arg-type]
        assert torch.equal(gates[m], alone)


def test_strides_of_any_kind() -> None:
    x, weight, onto = (random(*shape, dtype=torch.float32) for shape in ((2, 3, 40), (40, 9), (2, 3, 9)))
    y = linear_step(x[:, 1:2], weight.T, onto_XE=onto[:, 2:], backend=Backend.TRITON)
    assert torch.equal(
        y, linear_step(x[:, 1].contiguous(), weight.T.contiguous(), onto_XE=onto[:, 2], backend=Backend.TRITON)[:, None]
    )


def test_what_the_kernel_does_not_take_is_said_and_left_to_the_reference() -> None:
    x, weight = random(5, 1, 8, dtype=torch.float32), random(3, 8, dtype=torch.float32)
    assert few_rows(x[:4])
    assert not few_rows(x)
    with pytest.raises(ValueError, match=r"linear_step: .* there are 5 rows; the kernel takes at most 4"):
        linear_step(x, weight, backend=Backend.TRITON)
    assert relative_error(linear_step(x, weight).cpu(), by_definition(x, weight, None)) < 1e-6
    with pytest.raises(ValueError, match=r"gated_step: .* the dtypes differ"):
        gated_step(x[:1], weight.half(), weight, scale_D=x[0, 0], eps=EPS, activation="gelu", backend=Backend.TRITON)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M", [1, 2, 4])
@pytest.mark.parametrize(("D", "E"), [(4096, 12288), (11008, 4096), (1920, 5120), (8192, 129)])
def test_gpu_layers_with_what_surrounds_them(M: int, D: int, E: int, dtype: torch.dtype) -> None:
    check_linear(M, D, E, dtype, Backend.TRITON)
    check_gated(M, D, min(E, 4096), dtype, Backend.TRITON)
