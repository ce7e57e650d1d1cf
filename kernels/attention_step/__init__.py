"""Attention of one query a row to all that the row has seen, for decoding."""

from kernels.attention_step.operator import attention_step
from kernels.attention_step.reference import unpack

__all__ = ["attention_step", "unpack"]
