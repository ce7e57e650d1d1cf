"""Hyena-LI: featurizer, gate, sum of exponentials, gate."""

from kernels.hyena_li.operator import hyena_li, hyena_li_step
from kernels.hyena_li.piece import ModalPiece, hyena_li_piece
from kernels.hyena_li.reference import ModalState, modal_scan

__all__ = ["ModalPiece", "ModalState", "hyena_li", "hyena_li_piece", "hyena_li_step", "modal_scan"]
