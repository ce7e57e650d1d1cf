"""Hyena-SE and Hyena-MR in plain torch: y = q * (h conv (k * v) + D * (k * v)), q, k, v from the featurizer."""

# B batch, L length, D width, E = 3D projected channels, G filter groups, K taps, P past inputs

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.fir import channel_fir, grouped_fir


class FirState(NamedTuple):
    """What a gated FIR operator carries from piece to piece; zeros are the start of a sequence."""

    featurizer_BPE: Tensor  # the last projected inputs, in the input's dtype
    inner_BPD: Tensor  # the last gated inputs k * v, float32


def featurize(
    z_BLE: Tensor, taps_EK: Tensor, bias_E: Tensor | None, past_BPE: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the short filters that make q, k and v, in float32 or better.

    Returns:
        The post-gate q_BLD, the gated input w_BLD = k * v, and the featurizer's new state in z's dtype.
    """
    wide = torch.promote_types(z_BLE.dtype, torch.float32)
    f_BLE, past_BPE = channel_fir(z_BLE.to(wide), taps_EK.to(wide), past_BPE)
    if bias_E is not None:
        f_BLE = f_BLE + bias_E.to(wide)
    q_BLD, k_BLD, v_BLD = f_BLE.chunk(3, dim=-1)
    return q_BLD, k_BLD * v_BLD, past_BPE.to(z_BLE.dtype)


def hyena_fir(
    z_BLE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    state: FirState | None = None,
) -> tuple[Tensor, FirState]:
    """Apply Hyena-SE or Hyena-MR to a projection (paper eq. 1).

    Everything between reading z and writing y is float32 (float64 for float64 inputs), rounded once at the end.

    Args:
        z_BLE: the projection, in thirds: post-gate q, pre-gate k, value v.
        featurizer_EK: featurizer taps, tap 0 on the current token. featurizer_bias_E: added after it, or None.
        taps_GK: inner filter, one a group of channels; Hyena-MR's decay window is already in it.
        skip_D: direct path of the gated input, or None.
        state: what the last call returned; None starts a sequence.

    Returns:
        y_BLD in z's dtype, and the state that continues the sequence.
    """
    with torch.autocast(z_BLE.device.type, enabled=False):
        past = state or FirState(None, None)  # type: ignore[arg-type]
        q_BLD, w_BLD, featurizer_BPE = featurize(z_BLE, featurizer_EK, featurizer_bias_E, past.featurizer_BPE)
        c_BLD, inner_BPD = grouped_fir(w_BLD, taps_GK.to(w_BLD.dtype), past.inner_BPD)
        if skip_D is not None:
            c_BLD = torch.addcmul(c_BLD, w_BLD, skip_D.to(w_BLD.dtype))
        return (q_BLD * c_BLD).to(z_BLE.dtype), FirState(featurizer_BPE, inner_BPD)


def hyena_fir_step(
    z_BE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    state: FirState,
) -> Tensor:
    """Apply Hyena-SE or Hyena-MR to one token and move the state's tensors on in place; returns y_BD."""
    y_B1D, after = hyena_fir(z_BE[:, None], featurizer_EK, featurizer_bias_E, taps_GK, skip_D, state)
    for mine, new in zip(state, after, strict=True):
        mine.copy_(new)
    return y_B1D[:, 0]
