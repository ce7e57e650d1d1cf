"""RMSNorm of rows, for inference."""

from kernels.rms_norm.operator import rms_norm, rms_norm_and_sum

__all__ = ["rms_norm", "rms_norm_and_sum"]
