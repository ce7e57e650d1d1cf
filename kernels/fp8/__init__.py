"""FP8: rounding to E4M3 with a scale for all numbers or for each row, and products of codes scaled back."""

from kernels.fp8.operator import quantise, quantise_both, rescale
from kernels.fp8.reference import E4M3_MAX, FP8_TILE, pack, scale_of, unpack

__all__ = ["E4M3_MAX", "FP8_TILE", "pack", "quantise", "quantise_both", "rescale", "scale_of", "unpack"]
