"""Attention of one query a row to all that the row has seen, for decoding."""

from kernels.attention_step.operator import attention_append, attention_step

__all__ = ["attention_append", "attention_step"]
