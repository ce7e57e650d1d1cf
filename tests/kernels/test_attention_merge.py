"""Attention to parts, joined, against attention to everything in float64; in Triton's interpreter on a CPU."""

import pytest
import torch
from torch import Tensor

from kernels import merge_attention
from kernels.backend import Backend
from tests.kernels.comparison import DEVICE
from tests.kernels.definitions import relative_error

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}

pytestmark = pytest.mark.usefixtures("poisoned")

Parts = tuple[list[Tensor], list[Tensor]]


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in float64, and the logarithms of its denominators."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


def parts_and_whole(B: int, H: int, L: int, C: int, sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Parts, Tensor]:
    """Attention to keys in parts of these sizes, and to all of them [B, L, H, C]; some parts weigh far more."""
    generator = torch.Generator().manual_seed(L + C)
    S = sum(sizes)
    q, k, v = (torch.randn(B, H, n, C, generator=generator, dtype=torch.float64) for n in (L, S, S))
    pieces = [attend(q * 8, *pair) for pair in zip(k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True)]
    # as fused attention lays them out: heads within a token
    parts = [y.to(DEVICE, dtype).transpose(1, 2).contiguous().transpose(1, 2) for y, _ in pieces]
    logs = [log.to(DEVICE, torch.float32) for _, log in pieces]
    return (parts, logs), attend(q * 8, k, v)[0].transpose(1, 2)


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("B", "H", "L", "C", "sizes"), [(1, 1, 1, 1, (1,)), (2, 3, 67, 24, (5, 1, 130)), (1, 2, 3, 128, (8, 4, 2, 1, 3))]
)
def test_parts_joined_are_attention_to_everything(
    B: int, H: int, L: int, C: int, sizes: tuple[int, ...], dtype: torch.dtype, backend: Backend
) -> None:
    (parts, logs), whole = parts_and_whole(B, H, L, C, sizes, dtype)
    y = merge_attention(parts, logs, backend=backend)
    assert (y.shape, y.dtype) == (whole.shape, dtype)
    assert y.is_contiguous()
    assert relative_error(y.cpu(), whole) < TOLERANCE[dtype]


def test_float64_is_kept() -> None:
    (parts, logs), whole = parts_and_whole(1, 2, 5, 8, (3, 9), torch.float64)
    assert relative_error(merge_attention(parts, [log.double() for log in logs]).cpu(), whole) < 1e-6


def test_parts_that_lie_otherwise_are_said_and_left_to_the_reference() -> None:
    (parts, logs), whole = parts_and_whole(1, 2, 5, 8, (3, 9), torch.float32)
    parts[1] = parts[1].contiguous()
    with pytest.raises(ValueError, match="merge_attention: the Triton kernels cannot run here: the parts do not lie"):
        merge_attention(parts, logs, backend=Backend.TRITON)
    assert relative_error(merge_attention(parts, logs).cpu(), whole) < 1e-6
    with pytest.raises(ValueError, match="the logarithms are not float32"):
        merge_attention(parts[:1], [logs[0].double()], backend=Backend.TRITON)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_parts_joined_are_attention_to_everything(dtype: torch.dtype) -> None:
    (parts, logs), whole = parts_and_whole(2, 4, 1025, 128, (1024, 512, 300), dtype)
    assert relative_error(merge_attention(parts, logs, backend=Backend.TRITON).cpu(), whole) < TOLERANCE[dtype]
