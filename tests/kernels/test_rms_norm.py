"""RMSNorm's kernel against its definition in float64; in Triton's interpreter on a CPU."""

import pytest
import torch
from torch import Tensor

from kernels import rms_norm, rms_norm_and_sum
from kernels.backend import Backend
from tests.kernels.comparison import DEVICE
from tests.kernels.definitions import relative_error

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[-1])
    sizes = torch.rand(*shape[:-1], 1, generator=generator) * 30 + 1e-3
    x, scale = torch.randn(*shape, generator=generator) * sizes, torch.randn(shape[-1], generator=generator)
    return x.to(DEVICE, dtype), scale.to(DEVICE, dtype)


def by_definition(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    rows = [row / (row.square().mean().sqrt() + eps) * scale.double() for row in x.double().flatten(0, -2)]
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 3, 33), (5, 1920), (1, 1, 1)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@torch.no_grad()
def test_rows_are_normed_as_defined(shape: tuple[int, ...], dtype: torch.dtype, backend: Backend, eps: float) -> None:
    x, scale = inputs(*shape, dtype=dtype)
    y = rms_norm(x, scale, eps, backend=backend)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert relative_error(y, by_definition(x, scale, eps)) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_a_sum_with_a_bias_comes_beside_the_same_rows(dtype: torch.dtype, backend: Backend) -> None:
    x, scale = inputs(2, 33, 3, dtype=dtype)
    x, scale = x.mT, torch.randn(33, device=DEVICE).to(dtype)
    bias = torch.randn(33, device=DEVICE).to(dtype)
    y, total = rms_norm_and_sum(x, scale, bias, 1e-6, backend=backend)
    assert torch.equal(y, rms_norm(x, scale, 1e-6, backend=backend))
    assert torch.equal(total, x + bias)


@torch.no_grad()
def test_any_strides_zeros_and_a_float32_scale() -> None:
    x, scale = inputs(3, 40)
    apart = torch.stack([x, torch.full_like(x, torch.nan)], dim=1)[:, 0]
    assert torch.equal(
        rms_norm(apart, scale, 1e-6, backend=Backend.TRITON), rms_norm(x, scale, 1e-6, backend=Backend.TRITON)
    )
    assert not rms_norm(torch.zeros_like(x), scale, 1e-6, backend=Backend.TRITON).any()
    half = rms_norm(x.half(), scale, 1e-6, backend=Backend.TRITON)
    assert relative_error(half, by_definition(x.half(), scale, 1e-6)) < 1e-3


def test_gradients_are_those_of_plain_torch() -> None:
    x, scale = (tensor.double().requires_grad_() for tensor in inputs(2, 7))
    assert torch.autograd.gradcheck(lambda x, scale: rms_norm(x, scale, 1e-3), (x, scale))
    y, by_autograd = rms_norm(x, scale, 1e-3), scale * x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-3)
    upstream = torch.randn_like(y)
    wanted = torch.autograd.grad(by_autograd, (x, scale), upstream)
    for found, want in zip(torch.autograd.grad(y, (x, scale), upstream), wanted, strict=True):
        assert relative_error(found, want) < 1e-14
    zeros = torch.zeros_like(x, requires_grad=True)
    rms_norm(zeros, scale, 1e-3).sum().backward()
    assert torch.equal(zeros.grad, (scale / 1e-3).expand_as(zeros))
    with pytest.raises(ValueError, match="rms_norm: the Triton kernels cannot run here: gradients are kept"):
        rms_norm(x.float(), scale.float(), 1e-3, backend=Backend.TRITON)


@torch.no_grad()
def test_what_the_kernel_cannot_run_is_said_and_left_to_the_reference() -> None:
    x, scale = inputs(1, 16_385)
    with pytest.raises(ValueError, match="a row has 16385 channels; the kernel takes at most 16384"):
        rms_norm(x, scale, 1e-6, backend=Backend.TRITON)
    assert relative_error(rms_norm(x, scale, 1e-6), by_definition(x, scale, 1e-6)) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 4096), (64, 1, 1920), (1, 5000, 4096), (3, 8192)])
@torch.no_grad()
def test_gpu_rows_of_every_width(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, scale = inputs(*shape, dtype=dtype)
    y = rms_norm(x, scale, 1e-6, backend=Backend.TRITON)
    assert relative_error(y, by_definition(x, scale, 1e-6)) < 3 * TOLERANCE[dtype]
    alone = rms_norm(x[..., -1:, :], scale, 1e-6, backend=Backend.TRITON)
    assert torch.equal(alone, y[..., -1:, :])
    beside, total = rms_norm_and_sum(x, scale, scale, 1e-6, backend=Backend.TRITON)
    assert torch.equal(beside, y)
    assert torch.equal(total, x + scale)
