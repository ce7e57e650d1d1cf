"""The kernels around FP8 products against plain torch, which tests/sh2/test_fp8.py holds to the definition."""

import pytest
import torch

from kernels import quantise, quantise_both, rescale, scale_of
from kernels.backend import Backend
from kernels.fp8 import reference
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


def check_both(x: torch.Tensor, scale: torch.Tensor) -> None:
    codes, turned = quantise_both(x, scale, backend=Backend.TRITON)
    want, want_turned = quantise_both(x, scale, backend=Backend.REFERENCE)
    M, C = x.shape
    P = M + -M % 16
    for found in (turned, want_turned):
        assert found.shape == (C, P)
        assert found.is_contiguous()
        assert found.view(torch.uint8)[:, M:].eq(0).all()
    assert torch.equal(turned.view(torch.uint8)[:, :M], codes.view(torch.uint8).t())  # rounded once
    assert torch.equal(want_turned.view(torch.uint8)[:, :M], want.view(torch.uint8).t())
    assert torch.equal(want.view(torch.uint8), quantise(x, scale, backend=Backend.REFERENCE)[0].view(torch.uint8))
    sure = firm(x.float() * scale)
    torch.testing.assert_close(codes.float()[sure], want.float()[sure], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("C", [16, 48, 144])
@pytest.mark.parametrize("M", [1, 15, 16, 17, 129])
def test_codes_in_both_orders_are_those_of_plain_torch(M: int, C: int, dtype: torch.dtype) -> None:
    x = rows(M, C, dtype=dtype)
    for scale in (scale_of(x.abs().amax()), scale_of(x.abs().amax() / 7)):
        check_both(x, scale)
        check_both(x.t().contiguous().t(), scale)
        check_both(torch.cat([torch.full_like(x, torch.nan), x], dim=1)[:, C:], scale)  # part of wider rows


def test_infinity_in_both_orders_is_the_largest_code() -> None:
    x = rows(20, 48, dtype=torch.bfloat16)
    x[2, 0], x[17, 39] = torch.inf, -torch.inf
    check_both(x, scale_of(x.abs().amax()))
    _, turned = quantise_both(x, torch.ones((), device=DEVICE), backend=Backend.TRITON)
    assert (turned[0, 2].float(), turned[39, 17].float()) == (448.0, -448.0)


def test_what_the_kernel_of_both_orders_does_not_take_is_refused_or_computed_in_plain_torch() -> None:
    for x in (rows(20, 48), rows(20, 40, dtype=torch.bfloat16)):
        scale = scale_of(x.abs().amax())
        with pytest.raises(ValueError, match="the kernel takes 16 bits, and multiples of 16"):
            quantise_both(x, scale, backend=Backend.TRITON)
        for found, want in zip(quantise_both(x, scale), reference.quantise_both(x, scale), strict=True):
            assert torch.equal(found.view(torch.uint8), want.view(torch.uint8))


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 16), (32_768, 1920), (129, 5760), (1_200_000, 2048)])  # the last beyond 2^31
def test_gpu_both_orders_of_every_size(shape: tuple[int, int], dtype: torch.dtype, all_memory: None) -> None:
    x = torch.randn(shape, device=DEVICE, dtype=dtype)
    scale = scale_of(x.abs().amax())
    x.view(-1)[3] = torch.nan
    if x.numel() < 2**31:
        check_both(x, scale)
        return
    codes, turned = quantise_both(x, scale, backend=Backend.TRITON)
    for last in (slice(None, 1000), slice(-1000, None)):
        want = quantise(x[last], scale, backend=Backend.REFERENCE)[0].view(torch.uint8)
        assert torch.equal(codes[last].view(torch.uint8), want)
        assert torch.equal(turned[:, last].view(torch.uint8), want.t())
