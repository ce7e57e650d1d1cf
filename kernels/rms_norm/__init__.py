"""RMSNorm of rows, for inference."""

from kernels.rms_norm.operator import rms_norm

__all__ = ["rms_norm"]
