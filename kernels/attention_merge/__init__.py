"""Joins attention to parts of the keys, for inference."""

from kernels.attention_merge.operator import merge_attention

__all__ = ["merge_attention"]
