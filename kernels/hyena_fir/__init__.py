"""Hyena-SE and Hyena-MR: featurizer, gate, explicit filter, gate."""

from kernels.hyena_fir.operator import hyena_fir, hyena_fir_step
from kernels.hyena_fir.reference import FirState
from kernels.hyena_fir.state import hyena_fir_state

__all__ = ["FirState", "hyena_fir", "hyena_fir_state", "hyena_fir_step"]
