"""FP8 in plain torch."""

# C numbers that share a scale, E outputs, M rows, P = M up to a multiple of 16; X any leading dimensions

import torch
from torch import Tensor
from torch.nn import functional as F

E4M3_MAX = 448.0
FP8_TILE = 16  # hardware's products sum over multiples of this


def scale_of(amax: Tensor) -> Tensor:
    """The scale, float32, that takes the largest magnitude to the largest E4M3 number; 1 if it is 0 or not finite."""
    wide = amax.float()
    # a number over a tensor would be that number times a reciprocal, which rounds twice
    scale = (torch.full_like(wide, E4M3_MAX) / wide).clamp(max=torch.finfo(torch.float32).max)
    return torch.where((wide > 0) & wide.isfinite(), scale, torch.ones_like(scale))


def quantise(x_XC: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes float8_e4m3fn [X, C], and the scale; see `kernels.fp8.operator`."""
    if scale is None:
        scale = scale_of(x_XC.abs().amax(dim=-1, keepdim=True))
    return (x_XC.float() * scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale.float()


def quantise_both(x_MC: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes float8_e4m3fn [M, C] and [C, P]; see `kernels.fp8.operator`."""
    codes_MC, _ = quantise(x_MC, scale)
    bytes_PC = F.pad(codes_MC.view(torch.uint8), (0, 0, 0, -codes_MC.shape[0] % FP8_TILE))
    return codes_MC, bytes_PC.t().contiguous().view(torch.float8_e4m3fn)


def rescale(sums_XE: Tensor, factor: Tensor, bias_E: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums * factor in a dtype, and then the bias; see `kernels.fp8.operator`."""
    y_XE = (sums_XE * factor).to(dtype)
    return y_XE if bias_E is None else y_XE + bias_E


def pack(x_XC: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 codes, kept as bytes, of numbers, and float32 units; a unit takes the largest of C numbers to 448."""
    codes_XC, scale_X1 = quantise(x_XC)
    return codes_XC.view(torch.uint8), scale_X1.squeeze(-1).reciprocal()


def unpack(codes_XC: Tensor, units_X: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that codes and units stand for, rounded once to a dtype."""
    # in place: of a long past, another copy would count
    return codes_XC.view(torch.float8_e4m3fn).to(dtype).mul_(units_X[..., None])
