"""The operators by their definitions: explicit Toeplitz matrices in float64. Slow, and independent of the code."""

import torch
from torch import Tensor


def toeplitz(taps_DK: Tensor, length: int) -> Tensor:
    """The causal convolution matrix [D, L, L] of one filter a channel: entry (t, s) is tap t - s."""
    matrix = torch.zeros(taps_DK.shape[0], length, length, dtype=torch.float64)
    for t in range(length):
        for s in range(max(0, t - taps_DK.shape[1] + 1), t + 1):
            matrix[:, t, s] = taps_DK[:, t - s].double()
    return matrix


def convolve(x_BLD: Tensor, taps_DK: Tensor) -> Tensor:
    """The causal convolution of every channel with its filter, float64."""
    return torch.einsum("dts,bsd->btd", toeplitz(taps_DK, x_BLD.shape[1]), x_BLD.double())


def hyena(
    z_BLE: Tensor, featurizer_EK: Tensor, bias_E: Tensor | None, taps_DK: Tensor, skip_D: Tensor | None
) -> Tensor:
    """Equation 1 of the paper, up to the output projection, float64."""
    f_BLE = convolve(z_BLE, featurizer_EK)
    if bias_E is not None:
        f_BLE = f_BLE + bias_E.double()
    q_BLD, k_BLD, v_BLD = f_BLE.chunk(3, dim=-1)
    w_BLD = k_BLD * v_BLD
    c_BLD = convolve(w_BLD, taps_DK)
    if skip_D is not None:
        c_BLD = c_BLD + skip_D.double() * w_BLD
    return q_BLD * c_BLD


def modal_filter(log_poles_DN: Tensor, residues_DN: Tensor, length: int) -> Tensor:
    """Hyena-LI's filter [D, L]: sum_n R_n exp(log_pole_n t), float64."""
    t = torch.arange(length, dtype=torch.float64)
    powers_DNL = torch.exp(log_poles_DN.double()[:, :, None] * t)
    return (residues_DN.double()[:, :, None] * powers_DNL).sum(dim=1)


def relative_error(got: Tensor, want: Tensor) -> float:
    """The L2 norm of the difference over that of the wanted value."""
    got, want = got.detach(), want.detach()
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
