"""Causal finite impulse response filters, with state."""

from kernels.fir.reference import channel_fir, grouped_fir

__all__ = ["channel_fir", "grouped_fir"]
