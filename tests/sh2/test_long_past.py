"""A chunk after a long past: torch's attention without a mask in memory against the masked one."""

import pytest
import torch

from sh2.mixers.attention import attend
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
        torch.randn(1, length, heads, 64).cuda().to(dtype) for length, heads in ((300, 4), (20_000, J), (20_000, J))
    )
    want = attend(q.double().cpu(), k.double().cpu(), v.double().cpu(), None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = attend(q, k, v, None)
    if dtype is torch.bfloat16 or J == 4:
        assert torch.cuda.max_memory_allocated() - before < 300 * 20_000 / 2
    assert relative_error(got.cpu(), want) < (1e-2 if dtype is torch.bfloat16 else 1e-5)
