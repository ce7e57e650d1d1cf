"""The sequence mixers, by the letter of the layout. Each is a causal map `(x, state) -> (y, state)`."""

from torch import nn

from kernels import FirState, ModalState
from sh2.config import MixerKind
from sh2.mixers.attention import Attention, AttentionState
from sh2.mixers.backed import Backed
from sh2.mixers.cache import KVDtype, KVSlots
from sh2.mixers.hyena import Hyena, HyenaFir, HyenaLI, HyenaMR, HyenaSE

MixerState = FirState | ModalState | AttentionState | KVSlots

MIXERS: dict[MixerKind, type[nn.Module]] = {
    MixerKind.HYENA_SE: HyenaSE,
    MixerKind.HYENA_MR: HyenaMR,
    MixerKind.HYENA_LI: HyenaLI,
    MixerKind.ATTENTION: Attention,
}

__all__ = [
    "MIXERS",
    "Attention",
    "AttentionState",
    "Backed",
    "FirState",
    "Hyena",
    "HyenaFir",
    "HyenaLI",
    "HyenaMR",
    "HyenaSE",
    "KVDtype",
    "KVSlots",
    "MixerState",
    "ModalState",
]
