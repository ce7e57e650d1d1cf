"""Hyena-LI by a Fourier transform across ranks (paper sections 4, A.2.4 and A.3, p2p FFT).

A causal convolution of L tokens is a cyclic one of 2L with zeros behind them. The zeros make the transform's first
stage local: the even frequencies are those of x, the odd ones those of x_n exp(-i pi n / L). Two transforms remain.

Each is of length L and runs over C pieces, a power of two, by decimation in frequency. For h = C/2, C/4, ..., 1 pieces
c and c xor h trade what they hold; the lower one keeps the sum, the upper one the difference, twiddled. After that a
piece has to itself the frequencies that are the bit-reversal of its number modulo C, and ends with a transform of its
own. The inverse goes the same stages backwards, so nothing is ever permuted.

The filter is transformed with the inputs, as one sequence more: every rank makes its own values of it. The featurizer
takes its halo from the piece before, the gates stay outside. Spectra are complex64 (complex128 for float64 inputs). The
state is less work (`modal`): this is here because the paper has it.
"""

# B batch, P pieces a rank, C pieces in all, X = B P rows, l tokens a piece, L = C l, D width, E = 3D, N modes, H rows
# T = 2 transforms, of the even and the odd frequencies

import math

import torch
from torch import Tensor

from kernels import channel_fir, modal_scan
from sh2.parallel.exchange import Ranks, exchanged
from sh2.parallel.halo import Filters, Operator, borders, from_before


def by_fft(ranks: Ranks, operator: Operator, filters: Filters, z_BLE: Tensor) -> Tensor:
    """Apply Hyena-LI: y = q * (h conv (k * v) + D * (k * v)), the long convolution across ranks; in plain torch."""
    with torch.autocast(z_BLE.device.type, enabled=False):
        wide = torch.promote_types(z_BLE.dtype, torch.float32)
        featurizer_EF, log_poles_DN, residues_DN, skip_D = (
            tensor.to(wide) for tensor in (filters[0], *filters[2:]) if tensor is not None
        )
        bias_E = filters[1]
        z_XlE, _, tail_XHE = borders(ranks, z_BLE, featurizer_EF.shape[1] - 1)
        f_XlE, _ = channel_fir(z_XlE.to(wide), featurizer_EF, from_before(ranks, tail_XHE).to(wide))
        q_XlD, k_XlD, v_XlD = (f_XlE if bias_E is None else f_XlE + bias_E.to(wide)).chunk(3, dim=-1)
        w_XlD = k_XlD * v_XlD
        c_XlD = convolve(ranks, w_XlD, log_poles_DN, residues_DN)
        return ranks.shards.unrows(q_XlD * torch.addcmul(c_XlD, w_XlD, skip_D)).to(z_BLE.dtype)


def convolve(ranks: Ranks, w_XlD: Tensor, log_poles_DN: Tensor, residues_DN: Tensor) -> Tensor:
    """Convolve whole sequences with the modal filter."""
    shards, length = ranks.shards, w_XlD.shape[1]
    h_PlD = response(ranks, log_poles_DN, residues_DN, length)
    # the filter is one sequence more
    x_PBlD = torch.cat([shards.by_piece(w_XlD), h_PlD[:, None]], dim=1)
    twist_Pl = torch.stack([_turns(2 * shards.count * length, piece * length, length, w_XlD) for piece in shards.mine])
    twist_P1l1 = twist_Pl[:, None, :, None]
    spectra_PTBlD = forward(ranks, torch.stack([x_PBlD.to(twist_Pl.dtype), x_PBlD * twist_P1l1], dim=1))
    w_PTBlD, h_PT1lD = spectra_PTBlD.split([x_PBlD.shape[1] - 1, 1], dim=2)
    even_PBlD, odd_PBlD = inverse(ranks, w_PTBlD * h_PT1lD).unbind(1)
    return shards.by_row((even_PBlD + odd_PBlD * twist_P1l1.conj()).real / 2)


def response(ranks: Ranks, log_poles_DN: Tensor, residues_DN: Tensor, length: int) -> Tensor:
    """The filter's values at the tokens of this rank [P, l, D]: what a 1 at the first token of all is answered with."""
    impulse_PlD = residues_DN.new_zeros(ranks.shards.per_rank, length, len(residues_DN))
    modes = []
    for slot, piece in enumerate(ranks.shards.mine):
        impulse_PlD[slot, 0] = float(piece == 0)
        modes.append(torch.exp(log_poles_DN * max(piece * length - 1, 0)) * float(piece > 0))
    h_PlD, _ = modal_scan(impulse_PlD, log_poles_DN, residues_DN, torch.stack(modes))
    return h_PlD


def forward(ranks: Ranks, x_PTBlD: Tensor) -> Tensor:
    """Transform whole sequences; piece c comes to hold the frequencies C k + bit-reversal of c, k = 0 .. l-1."""
    distance = ranks.shards.count // 2
    while distance:
        x_PTBlD = _sums_and_differences(ranks, distance, x_PTBlD)
        x_PTBlD = x_PTBlD * _stage_turns(ranks, distance, x_PTBlD)
        distance //= 2
    return torch.fft.fft(x_PTBlD, dim=3)


def inverse(ranks: Ranks, x_PTBlD: Tensor) -> Tensor:
    """Undo `forward`."""
    x_PTBlD = torch.fft.ifft(x_PTBlD, dim=3)
    distance = 1
    while distance < ranks.shards.count:
        x_PTBlD = x_PTBlD * _stage_turns(ranks, distance, x_PTBlD).conj()
        x_PTBlD = _sums_and_differences(ranks, distance, x_PTBlD) / 2
        distance *= 2
    return x_PTBlD


def _sums_and_differences(ranks: Ranks, distance: int, x_PTBlD: Tensor) -> Tensor:
    """Trade pieces in pairs: the lower one of a pair becomes its sum, the upper one its difference."""
    other_PTBlD = torch.view_as_complex(exchanged(ranks.across(distance), torch.view_as_real(x_PTBlD)))
    triples = zip(ranks.shards.mine, x_PTBlD, other_PTBlD, strict=True)
    return torch.stack([other - own if piece & distance else own + other for piece, own, other in triples])


def _stage_turns(ranks: Ranks, distance: int, x_PTBlD: Tensor) -> Tensor:
    """The twiddle factors of a stage [P, 1, 1, l, 1]: 1 for the lower pieces."""
    length = x_PTBlD.shape[3]
    turns = [
        _turns(2 * distance * length, piece % distance * length, length, x_PTBlD.real)
        if piece & distance
        else x_PTBlD.new_ones(length)
        for piece in ranks.shards.mine
    ]
    return torch.stack(turns)[:, None, None, :, None]


def _turns(period: int, first: int, count: int, like: Tensor) -> Tensor:
    """exp(-2 pi i n / period) for n = first .. first+count-1, complex of like's precision."""
    n = torch.arange(first, first + count, device=like.device, dtype=torch.float64)
    angle = n * (-2 * math.pi / period)
    return torch.complex(angle.cos().to(like.dtype), angle.sin().to(like.dtype))
