"""Hyena-LI in plain torch: the long filter is a diagonal linear recurrence, run as a chunked scan, linear in length."""

# B batch, L length, D width, E = 3D projected channels, N modes, T tokens a chunk, M chunks, X = B M, P past inputs

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.hyena_fir.reference import featurize

_CHUNK = 64


class ModalState(NamedTuple):
    """What Hyena-LI carries from piece to piece; zeros are the start of a sequence."""

    featurizer_BPE: Tensor  # the last projected inputs, in the input's dtype
    modes_BDN: Tensor  # s_n = sum_j exp(log_pole_n (last - j)) w_j, float32


def modal_scan(
    w_BLD: Tensor, log_poles_DN: Tensor, residues_DN: Tensor, modes_BDN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve with h_t = sum_n R_n exp(log_pole_n t), t = 0, 1, ... (paper section 2, Hyena-LI).

    Args:
        w_BLD: inputs, float32 or float64; poles and residues in the same dtype.
        modes_BDN: the state after the inputs before the first; None is zeros.

    Returns:
        y_BLD and the state after the last input.
    """
    B, L, D = w_BLD.shape
    if modes_BDN is None:
        modes_BDN = w_BLD.new_zeros(B, D, log_poles_DN.shape[1])
    whole = L - L % _CHUNK
    if whole in (0, L):
        return _scan_chunks(w_BLD, log_poles_DN, residues_DN, modes_BDN, min(L, _CHUNK))
    head_BLD, modes_BDN = _scan_chunks(w_BLD[:, :whole], log_poles_DN, residues_DN, modes_BDN, _CHUNK)
    tail_BLD, modes_BDN = _scan_chunks(w_BLD[:, whole:], log_poles_DN, residues_DN, modes_BDN, L - whole)
    return torch.cat([head_BLD, tail_BLD], dim=1), modes_BDN


def _scan_chunks(
    w_BLD: Tensor, log_poles_DN: Tensor, residues_DN: Tensor, modes_BDN: Tensor, T: int
) -> tuple[Tensor, Tensor]:
    """The scan for a length that is a multiple of the chunk T."""
    B, L, D = w_BLD.shape
    t = torch.arange(T, device=w_BLD.device, dtype=w_BLD.dtype)
    powers_DNT = torch.exp(log_poles_DN[:, :, None] * t)
    w_DXT = _Turned.apply(w_BLD.reshape(B * L, D)).view(D, -1, T)

    # within a chunk: a lower triangular Toeplitz matrix of the filter's first T values
    h_DT = torch.einsum("dn,dnt->dt", residues_DN, powers_DNT)
    toeplitz_DTT = torch.nn.functional.pad(h_DT, (T - 1, 0)).unfold(1, T, 1).flip(-1)
    y_DXT = torch.bmm(w_DXT, toeplitz_DTT.mT)

    # between chunks: what each chunk adds to the state at its end, carried on by lambda^T
    added_DXN = torch.bmm(w_DXT, powers_DNT.flip(-1).mT)
    added_BMDN = added_DXN.unflatten(1, (B, L // T)).permute(1, 2, 0, 3)
    before_BMDN, modes_BDN = _carry(added_BMDN, log_poles_DN * T, modes_BDN)

    # a chunk's state before its first token decays by t+1 steps up to its token t
    out_DNT = residues_DN[:, :, None] * torch.exp(log_poles_DN[:, :, None] * (t + 1))
    y_DXT = torch.baddbmm(y_DXT, before_BMDN.permute(2, 0, 1, 3).flatten(1, 2), out_DNT)
    return _Turned.apply(y_DXT.view(D, B * L)).view(B, L, D), modes_BDN


class _Turned(torch.autograd.Function):
    """A matrix transposed in memory, and its gradient likewise: what follows is slow on one that only seems so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.t().contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].t().contiguous()


def _carry(added_BMDN: Tensor, log_decay_DN: Tensor, modes_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """Solve s_(m+1) = decay s_m + added_m by doubling: log2(M) passes instead of M steps.

    Returns:
        The state before every chunk, and the state after the last.
    """
    M = added_BMDN.shape[1]
    states_BMDN = torch.cat([modes_BDN[:, None], added_BMDN], dim=1)
    stride = 1
    while stride <= M:
        carried_BMDN = states_BMDN[:, :-stride] * torch.exp(log_decay_DN * stride)
        states_BMDN = torch.cat([states_BMDN[:, :stride], states_BMDN[:, stride:] + carried_BMDN], dim=1)
        stride *= 2
    # a copy: the state must not keep all chunks' alive
    return states_BMDN[:, :-1], states_BMDN[:, -1].clone()


def hyena_li(
    z_BLE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    state: ModalState | None = None,
) -> tuple[Tensor, ModalState]:
    """Apply Hyena-LI to a projection (paper eq. 1): y = q * (h conv (k * v) + D * (k * v)).

    Everything between reading z and writing y is float32 (float64 for float64 inputs), rounded once at the end.

    Args:
        z_BLE: the projection, in thirds: post-gate q, pre-gate k, value v.
        featurizer_EK: featurizer taps, tap 0 on the current token. featurizer_bias_E: added after it, or None.
        log_poles_DN: logarithms of the real poles, float32. residues_DN: their weights, float32.
        skip_D: direct path of the gated input.
        state: what the last call returned; None starts a sequence.

    Returns:
        y_BLD in z's dtype, and the state that continues the sequence.
    """
    with torch.autocast(z_BLE.device.type, enabled=False):
        past = state or ModalState(None, None)  # type: ignore[arg-type]
        q_BLD, w_BLD, featurizer_BPE = featurize(z_BLE, featurizer_EK, featurizer_bias_E, past.featurizer_BPE)
        wide = w_BLD.dtype
        c_BLD, modes_BDN = modal_scan(w_BLD, log_poles_DN.to(wide), residues_DN.to(wide), past.modes_BDN)
        c_BLD = torch.addcmul(c_BLD, w_BLD, skip_D.to(wide))
        return (q_BLD * c_BLD).to(z_BLE.dtype), ModalState(featurizer_BPE, modes_BDN)


def summary(
    z_BLE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    past_BPE: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run Hyena-LI from modes of zero; returns the modes after the last token, and what `outputs` takes."""
    with torch.autocast(z_BLE.device.type, enabled=False):
        q_BLD, w_BLD, _ = featurize(z_BLE, featurizer_EK, featurizer_bias_E, past_BPE)
        log_poles_DN, residues_DN, skip_D = (x.to(w_BLD.dtype) for x in (log_poles_DN, residues_DN, skip_D))
        c_BLD, modes_BDN = modal_scan(w_BLD, log_poles_DN, residues_DN)
        return modes_BDN, (q_BLD, torch.addcmul(c_BLD, w_BLD, skip_D), log_poles_DN, residues_DN)


def outputs(kept: tuple[Tensor, ...], modes_BDN: Tensor) -> Tensor:
    """Return y_BLD, float32 or better, of what `summary` kept and the modes before the first token."""
    q_BLD, c_BLD, log_poles_DN, residues_DN = kept
    with torch.autocast(q_BLD.device.type, enabled=False):
        return q_BLD * (c_BLD + _response(modes_BDN.to(q_BLD.dtype), log_poles_DN, residues_DN, q_BLD.shape[1]))


def _response(modes_BDN: Tensor, log_poles_DN: Tensor, residues_DN: Tensor, length: int) -> Tensor:
    """What comes [B, length, D] of modes that nothing is added to: they decay chunk by chunk, and within each."""
    chunk = torch.arange(-(-length // _CHUNK), device=modes_BDN.device, dtype=modes_BDN.dtype)
    t = torch.arange(1, _CHUNK + 1, device=modes_BDN.device, dtype=modes_BDN.dtype)
    powers_DTN = torch.exp(log_poles_DN[:, None] * t[:, None]) * residues_DN[:, None]
    before_DNBM = modes_BDN.permute(1, 2, 0)[..., None] * torch.exp(log_poles_DN[..., None, None] * (_CHUNK * chunk))
    c_DTBM = torch.bmm(powers_DTN, before_DNBM.flatten(2)).unflatten(2, before_DNBM.shape[2:])
    return c_DTBM.permute(2, 3, 1, 0).flatten(1, 2)[:, :length]


def hyena_li_step(
    z_BE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    state: ModalState,
) -> Tensor:
    """Apply Hyena-LI to one token and move the state's tensors on in place; returns y_BD."""
    parameters = (featurizer_EK, featurizer_bias_E, log_poles_DN, residues_DN, skip_D)
    y_B1D, after = hyena_li(z_BE[:, None], *parameters, state)
    for mine, new in zip(state, after, strict=True):
        mine.copy_(new)
    return y_B1D[:, 0]
