"""Linear layers of a few rows, with what surrounds them in a block."""

from kernels.linear_step.operator import few_rows, gated_step, linear_step

__all__ = ["few_rows", "gated_step", "linear_step"]
