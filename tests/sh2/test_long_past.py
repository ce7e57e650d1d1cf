"""A chunk after a long past: fused attention, whole and in blocks, against the masked one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sh2.mixers import fused
from sh2.mixers.attention import attend
from sh2.parallel.rectangles import plain
from tests.kernels.definitions import relative_error


@pytest.mark.parametrize("S", [9, 64, 100])
def test_torch_s_attention_without_a_mask_in_memory_is_the_masked_one(S: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, length, 4, 8) for length in (9, S, S))
    want = attend(q, k, v, None)
    monkeypatch.setattr("sh2.mixers.attention._has_lower_right", lambda *_: True)
    monkeypatch.setattr("sh2.mixers.attention._mask", None)
    assert relative_error(attend(q, k, v, None), want) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "J"), [(torch.bfloat16, 4), (torch.bfloat16, 2), (torch.float32, 4), (torch.float32, 2)]
)
def test_gpu_a_chunk_after_a_long_past_needs_no_mask(dtype: torch.dtype, J: int) -> None:
    q, k, v = (
        torch.randn(1, length, heads, 64).cuda().to(dtype) for length, heads in ((300, 4), (60_000, J), (60_000, J))
    )
    want = attend(q.double().cpu(), k.double().cpu(), v.double().cpu(), None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = attend(q, k, v, None)
    if dtype is torch.bfloat16 or J == 4:
        assert torch.cuda.max_memory_allocated() - before < 300 * 60_000 / 2
    assert relative_error(got.cpu(), want) < (1e-2 if dtype is torch.bfloat16 else 1e-5)


@given(past=st.integers(0, 1 << 22))
def test_blocks_cover_the_past_in_few_sizes(past: int) -> None:
    blocks = list(fused.blocks(past))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks)][: len(blocks)]
    assert sum(block.stop - block.start for block in blocks) == past
    assert all((block.stop - block.start).bit_count() == 1 for block in blocks)
    assert len(blocks) == past.bit_count()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("L", "S"), [(2, 3), (9, 10), (9, 100), (64, 128), (130, 1000)])
def test_on_a_cpu_a_past_is_taken_by_itself_without_a_mask(
    L: int, S: int, dtype: torch.dtype, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = torch.randn(2, L, 3, 8, dtype=dtype)
    k, v = torch.randn(2, S, 6, 8, dtype=dtype).split(3, dim=2)
    scores = torch.einsum("blhc,bshc->bhls", q.double(), k.double()) * 8**-0.5
    later = torch.arange(S) > torch.arange(S - L, S)[:, None]
    want = torch.einsum("bhls,bshc->blhc", scores.masked_fill(later, -torch.inf).softmax(dim=-1), v.double())
    monkeypatch.setattr("sh2.mixers.attention._mask", None)
    with torch.no_grad():
        assert relative_error(attend(q, k, v, None), want) < error


@pytest.mark.parametrize("S", [8, 16, 24, 64])
def test_blocks_joined_are_attention_to_everything(S: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fused kernel's place taken by its definition, which runs here."""
    q, k, v = (torch.randn(2, length, 4, 8) for length in (8, S, S))
    want = attend(q, k, v, None)
    sizes = []

    def define(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
        sizes.append((k.shape[2], causal))
        return plain(q, k, v, causal=causal)

    monkeypatch.setattr(fused, "_attend", define)
    monkeypatch.setattr(fused, "_plans", lambda device: True)
    monkeypatch.setattr("sh2.mixers.attention.fits", lambda *_: True)
    assert relative_error(attend(q, k, v, None), want) < 1e-6
    assert sizes == [(8, True), *((1 << bit, False) for bit in reversed(range(7)) if S - 8 & 1 << bit)]


@pytest.mark.gpu
@pytest.mark.parametrize(("B", "H", "J", "C"), [(1, 4, 4, 128), (2, 4, 2, 64), (1, 15, 15, 128)])
@pytest.mark.parametrize("S", [1024, 2048, 9216])
def test_gpu_blocks_joined_are_attention_to_everything(B: int, H: int, J: int, C: int, S: int) -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("cuDNN's attention is taken from Hopper on")
    # keys and values as parts of a projection, with others between them
    q = torch.randn(B, 1024, H, C).cuda().bfloat16()
    k, v = torch.randn(B, S, 2 * J, C).cuda().bfloat16().split(J, dim=2)
    with torch.no_grad():
        assert fused.fits(q.transpose(1, 2), k.transpose(1, 2))
        want = attend(q.double().cpu(), k.double().cpu(), v.double().cpu(), None)
        assert relative_error(attend(q, k, v, None).cpu(), want) < 1e-2


@pytest.mark.gpu
def test_gpu_gradients_of_the_fused_attention() -> None:
    values = [torch.randn(2, 1024, 3, 64, dtype=torch.float64) for _ in range(4)]
    *inputs, dy = values
    want = torch.autograd.grad(attend(*(x.requires_grad_() for x in inputs), None), inputs, dy)
    near = [x.detach().cuda().bfloat16().requires_grad_() for x in inputs]
    got = torch.autograd.grad(attend(*near, None), near, dy.cuda().bfloat16())
    assert all(relative_error(one.cpu(), other) < 2e-2 for one, other in zip(got, want, strict=True))
