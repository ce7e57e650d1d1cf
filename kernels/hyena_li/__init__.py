"""Hyena-LI: featurizer, gate, sum of exponentials, gate."""

from kernels.hyena_li.reference import ModalState, hyena_li, modal_scan

__all__ = ["ModalState", "hyena_li", "modal_scan"]
