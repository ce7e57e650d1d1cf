"""A linear layer whose weight is kept in FP8."""

from kernels.packed_linear.operator import packed_linear

__all__ = ["packed_linear"]
