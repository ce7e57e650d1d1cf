"""The kernels around FP8 products against plain torch, which tests/sh2/test_fp8.py holds to the definition."""

import pytest
import torch

from kernels import quantise, rescale, scale_of
from kernels.backend import Backend
from tests.kernels.comparison import DEVICE

SHAPES = [(1, 1), (2, 3, 33), (5, 1920), (17, 16)]

pytestmark = pytest.mark.usefixtures("poisoned")


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of rows of very different sizes; one row is zeros."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator) * torch.exp2(
        torch.randint(-20, 9, (*shape[:-1], 1), generator=generator)
    )
    x.view(-1, shape[-1])[shape[0] - 1] *= float(shape[0] == 1)
    return x.to(DEVICE, dtype)


def firm(scaled: torch.Tensor) -> torch.Tensor:
    """Where Triton's interpreter rounds to E4M3 as all others do: not at ties, and not where it would have to carry."""
    if DEVICE != "cpu":
        return torch.ones_like(scaled, dtype=torch.bool)
    sixteenths = torch.frexp(scaled).mantissa.abs() * 16  # 8 to 16, of which E4M3 keeps the whole
    usual = (sixteenths < 15.5) & (sixteenths.frac() != 0.5) & (scaled.abs() >= 2**-6)
    return usual | (scaled == 0) | (scaled.abs() >= 448) | scaled.isnan()


def check_codes(x: torch.Tensor, scale: torch.Tensor | None) -> None:
    (codes, found), (want, wanted) = (
        quantise(x, scale, backend=backend) for backend in (Backend.TRITON, Backend.REFERENCE)
    )
    assert codes.dtype is torch.float8_e4m3fn
    assert torch.equal(found, wanted)
    sure = firm(x.float() * wanted)
    torch.testing.assert_close(codes.float()[sure], want.float()[sure], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_those_of_plain_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = rows(*shape, dtype=dtype)
    check_codes(x, None)
    check_codes(x, scale_of(x.abs().amax() / 7))  # what lies beyond the largest code is cut
    check_codes(x.mT.contiguous().mT, None)


def test_a_row_with_infinity_has_scale_one() -> None:
    x = rows(4, 40)
    x[2, 0], x[3, 5] = torch.inf, -torch.inf
    check_codes(x, None)
    check_codes(x, torch.tensor([3.0], device=DEVICE))
    codes, scale = quantise(x, backend=Backend.TRITON)
    assert (codes[2, 0].float(), codes[3, 5].float()) == (448.0, -448.0)
    assert scale[2:].eq(1).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_scaled_rounded_and_shifted_as_in_plain_torch(shape: tuple[int, ...], biased: bool) -> None:
    sums = rows(*shape)
    factor = torch.rand(*shape[:-1], 1, device=DEVICE)
    bias = torch.randn(shape[-1], device=DEVICE) if biased else None
    for dtype in (torch.float32, torch.float16):
        own = None if bias is None else bias.to(dtype)
        for of_rows in (factor, factor.flatten()[0]):
            found, want = (
                rescale(sums, of_rows, own, dtype, backend=backend) for backend in (Backend.TRITON, Backend.REFERENCE)
            )
            assert torch.equal(found, want)


def test_rows_that_are_too_long_are_left_to_plain_torch() -> None:
    x = rows(1, 16_385)
    with pytest.raises(ValueError, match=r"quantise: .* rows have 16385 numbers; the kernel takes at most 16384"):
        quantise(x, backend=Backend.TRITON)
    assert torch.equal(quantise(x)[0].float(), quantise(x, backend=Backend.REFERENCE)[0].float())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 4096), (8192, 4096), (3, 70_000, 128), (100, 8192)])
def test_gpu_rows_of_every_width(shape: tuple[int, ...]) -> None:
    x = rows(*shape, dtype=torch.bfloat16)
    check_codes(x, None)
    check_codes(x, torch.tensor(0.3, device=DEVICE))
    sums, factor, bias = x.float(), torch.rand(*shape[:-1], 1, device=DEVICE), x.flatten(0, -2)[-1]
    found, want = (
        rescale(sums, factor, bias, torch.bfloat16, backend=backend) for backend in (Backend.TRITON, Backend.REFERENCE)
    )
    assert torch.equal(found, want)
    x[0].view(-1)[3] = torch.nan  # which Triton's interpreter does not keep
    assert quantise(x, backend=Backend.TRITON)[0].float().isnan().sum() == 1
