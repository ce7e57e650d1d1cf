"""A linear layer of a packed weight in plain torch: the weight's numbers are there for a moment."""

# D inputs, E outputs; X any leading dimensions

from torch import Tensor
from torch.nn import functional as F

from kernels.fp8.reference import unpack


def packed_linear(x_XD: Tensor, codes_ED: Tensor, units_E: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """y = x (codes * units)^T + bias."""
    return F.linear(x_XD, unpack(codes_ED, units_E, x_XD.dtype), bias_E)
