"""RMSNorm in Triton: one launch, a program a row, which is read once and stays in registers."""

# M rows, D width, P = D up to a power of two

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED


@triton.jit
def norm_kernel(x, scale, y, bias, sums, eps, root, D: tl.constexpr, P: tl.constexpr, SUM: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64) * D
    channel_P = tl.arange(0, P)
    mask_P = channel_P < D
    x_P = tl.load(x + row + channel_P, mask=mask_P, other=0.0).to(tl.float32)
    scale_P = tl.load(scale + channel_P, mask=mask_P, other=0.0).to(tl.float32)
    rms = tl.sqrt(tl.sum(x_P * x_P, axis=0)) * root
    tl.store(y + row + channel_P, (x_P * (1.0 / (rms + eps)) * scale_P).to(y.dtype.element_ty), mask=mask_P)
    if SUM:
        bias_P = tl.load(bias + channel_P, mask=mask_P, other=0.0).to(tl.float32)
        tl.store(sums + row + channel_P, (x_P + bias_P).to(sums.dtype.element_ty), mask=mask_P)


def norm(
    x_MD: Tensor, scale_D: Tensor, eps: float, bias_D: Tensor | None = None, sum_MD: Tensor | None = None
) -> Tensor:
    """Run the kernel on contiguous rows; with a bias, into `sum_MD` goes its sum with x."""
    M, D = x_MD.shape
    y_MD = torch.empty_like(x_MD)
    P = triton.next_power_of_2(D)
    norm_kernel[(M,)](
        x_MD, scale_D, y_MD, y_MD if bias_D is None else bias_D, y_MD if sum_MD is None else sum_MD, eps, D**-0.5,
        D, P, bias_D is not None, num_warps=min(8, max(1, P // 512)), **FUSED,
    )  # fmt: skip
    return y_MD
