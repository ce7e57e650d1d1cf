"""Hyena-SE and Hyena-MR: featurizer, gate, explicit filter, gate."""

from kernels.hyena_fir.reference import FirState, hyena_fir

__all__ = ["FirState", "hyena_fir"]
