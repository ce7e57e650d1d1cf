"""Rotary embedding of the heads of a projection."""

from kernels.rotary.operator import rotate

__all__ = ["rotate"]
