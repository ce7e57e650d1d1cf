"""What the filters of a model look like, in numbers: how strong, and how far they look back."""

# D width, G filter groups, K taps, N modes

import math
from typing import Any

import torch
from torch import Tensor

from sh2.mixers import HyenaLI
from sh2.mixers.hyena import HyenaFir
from sh2.model import StripedHyena2


@torch.no_grad()
def filter_statistics(model: StripedHyena2) -> list[dict[str, Any]]:
    """Describe every convolutional mixer, and every Hyena-SE in a feed-forward layer's place.

    Returns:
        for each: `module`; `rms` of its taps, or of the first values of its long filters; `skip_rms` (None without);
        `featurizer_rms`; and how far it looks back in tokens: `lag`, the mean of its taps' lags, weighted by their
        squares, or, of long filters, the time constants of their modes, weighted by the squares of what these sum to,
        at `memory_5`, `memory_50` and `memory_95` percent.
    """
    return [
        {"module": name, **_describe(module)}
        for name, module in model.named_modules()
        if isinstance(module, HyenaFir | HyenaLI)
    ]


def _describe(mixer: HyenaFir | HyenaLI) -> dict[str, Any]:
    common = {
        "featurizer_rms": _rms(mixer.featurizer_taps),
        "skip_rms": None if mixer.skip is None else _rms(mixer.skip),
    }
    if isinstance(mixer, HyenaFir):
        taps_GK = mixer.inner_filter().double()
        energy_K = taps_GK.square().sum(dim=0)
        lags_K = torch.arange(len(energy_K), device=energy_K.device)
        return common | {"rms": _rms(taps_GK), "lag": ((energy_K * lags_K).sum() / energy_K.sum()).item()}
    log_poles_DN, residues_DN = mixer.effective_log_poles().double(), mixer.residues.double()
    # a mode's filter is R exp(-t / memory), whose values sum to R / (1 - exp(-1 / memory))
    sums_DN = residues_DN / -torch.expm1(log_poles_DN)
    memory, order = (-1 / log_poles_DN).flatten().sort()
    weight = sums_DN.square().flatten()[order].cumsum(dim=0)
    places = torch.searchsorted(weight / weight[-1], weight.new_tensor([0.05, 0.5, 0.95]))
    low, middle, high = memory[places.clamp(max=len(memory) - 1)].tolist()
    return common | {
        "rms": _rms(residues_DN.sum(dim=1)),
        "memory_5": low,
        "memory_50": middle,
        "memory_95": high,
    }


def _rms(tensor: Tensor) -> float:
    return tensor.double().norm().item() / math.sqrt(tensor.numel())
