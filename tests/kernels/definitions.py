"""The operators by their definitions: explicit Toeplitz matrices in float64. Slow, and independent of the code."""

import torch
from torch import Tensor


def toeplitz(taps_DK: Tensor, length: int) -> Tensor:
    """The causal convolution matrix [D, L, L] of one filter a channel: entry (t, s) is tap t - s."""
    row = torch.arange(length, device=taps_DK.device)
    lag_LL = row[:, None] - row[None, :]
    there_LL = (lag_LL >= 0) & (lag_LL < taps_DK.shape[1])
    return taps_DK.double()[:, lag_LL * there_LL] * there_LL


def convolve(x_BLD: Tensor, taps_DK: Tensor) -> Tensor:
    """The causal convolution of every channel with its filter, float64."""
    return torch.einsum("dts,bsd->btd", toeplitz(taps_DK, x_BLD.shape[1]), x_BLD.double())


def hyena(
    z_BLE: Tensor, featurizer_EK: Tensor, bias_E: Tensor | None, taps_DK: Tensor, skip_D: Tensor | None
) -> Tensor:
    """Equation 1 of the paper, up to the output projection, float64."""
    past_BPE = z_BLE.new_zeros(z_BLE.shape[0], featurizer_EK.shape[1] - 1, z_BLE.shape[2])
    inner_BPD = z_BLE.new_zeros(z_BLE.shape[0], taps_DK.shape[1] - 1, taps_DK.shape[0])
    return continued_hyena(z_BLE, featurizer_EK, bias_E, taps_DK, skip_D, past_BPE, inner_BPD)[0]


def continued_hyena(
    z_BLE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    taps_DK: Tensor,
    skip_D: Tensor | None,
    past_BPE: Tensor,
    inner_BPD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same after earlier inputs of both filters, and the inputs before the next call."""
    z_BSE = torch.cat([past_BPE.double(), z_BLE.double()], dim=1)
    f_BLE = convolve(z_BSE, featurizer_EK)[:, past_BPE.shape[1] :]
    if bias_E is not None:
        f_BLE = f_BLE + bias_E.double()
    q_BLD, k_BLD, v_BLD = f_BLE.chunk(3, dim=-1)
    w_BLD = k_BLD * v_BLD
    w_BSD = torch.cat([inner_BPD.double(), w_BLD], dim=1)
    c_BLD = convolve(w_BSD, taps_DK)[:, inner_BPD.shape[1] :]
    if skip_D is not None:
        c_BLD = c_BLD + skip_D.double() * w_BLD
    length = z_BLE.shape[1]
    return q_BLD * c_BLD, z_BSE[:, length:], w_BSD[:, length:]


def modal_filter(log_poles_DN: Tensor, residues_DN: Tensor, length: int) -> Tensor:
    """Hyena-LI's filter [D, L]: sum_n R_n exp(log_pole_n t), float64."""
    t = torch.arange(length, dtype=torch.float64)
    powers_DNL = torch.exp(log_poles_DN.double()[:, :, None] * t)
    return (residues_DN.double()[:, :, None] * powers_DNL).sum(dim=1)


def relative_error(got: Tensor, want: Tensor) -> float:
    """The L2 norm of the difference over that of the wanted value."""
    got, want = got.detach(), want.detach()
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
