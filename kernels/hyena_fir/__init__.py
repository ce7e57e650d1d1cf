"""Hyena-SE and Hyena-MR: featurizer, gate, explicit filter, gate."""

from kernels.hyena_fir.operator import hyena_fir, hyena_fir_step
from kernels.hyena_fir.reference import FirState

__all__ = ["FirState", "hyena_fir", "hyena_fir_step"]
