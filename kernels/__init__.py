"""Sequence operators: one folder an op. Speaks convolution and tensors; knows nothing of models.

Every operator is a causal map `(x, state) -> (y, state)`: `state=None` is the start of a sequence, and the state that
comes out continues it. Pieces of a sequence, however cut, give the outputs of one pass.
"""

from kernels.attention_merge import merge_attention
from kernels.attention_step import attention_append, attention_step
from kernels.backend import Backend, constant
from kernels.fir import channel_fir, grouped_fir
from kernels.fp8 import E4M3_MAX, FP8_TILE, pack, quantise, quantise_both, rescale, scale_of, unpack
from kernels.hyena_fir import FirState, hyena_fir, hyena_fir_state, hyena_fir_step
from kernels.hyena_li import ModalPiece, ModalState, hyena_li, hyena_li_piece, hyena_li_step, modal_scan
from kernels.linear_step import few_rows, gated_step, linear_step
from kernels.packed_linear import packed_linear
from kernels.rms_norm import rms_norm, rms_norm_and_sum
from kernels.rotary import rotate

__all__ = [
    "E4M3_MAX",
    "FP8_TILE",
    "Backend",
    "FirState",
    "ModalPiece",
    "ModalState",
    "attention_append",
    "attention_step",
    "channel_fir",
    "constant",
    "few_rows",
    "gated_step",
    "grouped_fir",
    "hyena_fir",
    "hyena_fir_state",
    "hyena_fir_step",
    "hyena_li",
    "hyena_li_piece",
    "hyena_li_step",
    "linear_step",
    "merge_attention",
    "modal_scan",
    "pack",
    "packed_linear",
    "quantise",
    "quantise_both",
    "rescale",
    "rms_norm",
    "rms_norm_and_sum",
    "rotate",
    "scale_of",
    "unpack",
]
