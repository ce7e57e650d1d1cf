"""Peers that compute our operators: other people's convolutions, with featurizer and gates, checked against ours.

They keep channels before time, [B, D, L], and one filter a channel; a filter's last tap is on the current token.
"""

# B batch, L length, D width, E = 3D projected channels, K taps, N modes

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from sh2.bench.cases import Case, Draw, Operator, Outputs, Problem, hyena
from sh2.bench.imports import import_alone

FFT_CHECK_LENGTH = 131  # its filter has as many taps as there are tokens, and the reference is quadratic in taps


def torch_conv1d(case: Case) -> Problem:
    """Depthwise conv1d for featurizer and filter, gates between; input and output [B, D, L], no transposes."""
    draw = Draw(case)
    return Problem(
        inputs={"z": draw.channels_first(), **_fir(draw)},
        call=_gated_conv1d,
        definition=_time_last(_flipped(case.op)),
    )


def torch_conv1d_transposed(case: Case) -> Problem:
    """The same from a projection [B, L, 3D] to [B, L, D]: what a model whose layers keep [B, L, D] pays."""
    draw = Draw(case)
    return Problem(
        inputs={"z": draw.normal(case.batch, case.length, 3 * case.width), **_fir(draw)},
        call=lambda z_BLE, *rest: (_gated_conv1d(z_BLE.mT.contiguous(), *rest)[0].mT.contiguous(),),
        definition=_flipped(case.op),
    )


def torch_fft(case: Case) -> Problem:
    """The long filter by real FFTs in float32, from a ready filter [D, L]: building that is not counted."""
    draw = Draw(case)
    decay_DL = torch.exp(-draw.uniform(case.width, 1, low=1e-3, high=1) * torch.arange(case.length, device=case.device))

    def call(z_BEL: Tensor, featurizer_EK: Tensor, taps_DL: Tensor, skip_D: Tensor) -> Outputs:
        q_BDL, k_BDL, v_BDL = _causal(z_BEL, featurizer_EK).chunk(3, dim=1)
        w_BDL, size = k_BDL * v_BDL, 2 * case.length
        spectrum = torch.fft.rfft(w_BDL.float(), n=size) * torch.fft.rfft(taps_DL, n=size)
        c_BDL = torch.fft.irfft(spectrum, n=size)[..., : case.length].to(w_BDL.dtype)
        return (q_BDL * (c_BDL + skip_D[:, None] * w_BDL),)

    def plain(z_BLE: Tensor, featurizer_EK: Tensor, taps_DL: Tensor, skip_D: Tensor) -> Outputs:
        return hyena(Operator.HYENA_MR, "reference")(z_BLE, featurizer_EK.flip(-1), taps_DL, skip_D)[:1]

    return Problem(
        inputs={
            "z": draw.channels_first(),
            "featurizer": draw.featurizer(),
            "filter": draw.normal(case.width, case.length, dtype=torch.float32) * decay_DL,
            "skip": draw.normal(case.width),
        },
        call=call,
        definition=_time_last(plain),
    )


def cudnn_b2b(case: Case) -> Problem:
    """cuDNN's fused back-to-back causal convolution: channels of z in triples q, k, v; always with a skip."""
    fused = import_alone("cudnn.ops").b2b_causal_conv1d

    def plain(z_BLE: Tensor, featurizer_EK: Tensor, taps_DK: Tensor, skip_D: Tensor) -> Outputs:
        thirds_BLE = z_BLE.unflatten(2, (-1, 3)).mT.flatten(2)
        thirds_EK = featurizer_EK.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
        return _flipped(case.op)(thirds_BLE, thirds_EK, taps_DK, skip_D)

    draw = Draw(case)
    return Problem(
        inputs={"z": draw.channels_first(), **draw.fir(groups=case.width, skip=True)},
        call=lambda *inputs: (fused(*inputs),),
        definition=_time_last(plain),
    )


def vtx_triton(case: Case) -> Problem:
    """The Triton kernels of vtx (its HCS, HCM, HCL), behind a conv1d featurizer, in its precision; forward only."""
    draw = Draw(case)
    if case.op is Operator.HYENA_LI:
        call, parameters, plain = _vtx_li(case), draw.modal(), _flipped(case.op, filter_too=False)
    else:
        call, parameters, plain = _vtx_fir(case), _fir(draw), _flipped(case.op)
    return Problem(
        inputs={"z": draw.channels_first(), **parameters},
        call=call,
        definition=_time_last(plain),
        differentiable=False,
    )


def _vtx_fir(case: Case) -> Callable[..., Outputs]:
    """HCS convolves directly; HCM, for 128 taps, by FFT."""
    if case.op is Operator.HYENA_SE:
        short = import_alone("vortex.ops.hcs_interface").hcs_conv
    else:
        medium = import_alone("vortex.ops.hcm_interface").hcm_fft_conv

    def call(z_BEL: Tensor, featurizer_EK: Tensor, taps_DK: Tensor, *skip: Tensor) -> Outputs:
        q_BDL, k_BDL, v_BDL = _causal(z_BEL, featurizer_EK).chunk(3, dim=1)
        if case.op is Operator.HYENA_SE:
            return (short(k_BDL, q_BDL, v_BDL, taps_DK[:, None]),)
        w_BDL = k_BDL * v_BDL
        filter_D1K = taps_DK.flip(-1)[:, None, : case.length].float()
        c_BDL = medium(w_BDL.float(), filter_D1K, skip[0].float(), None)
        return (q_BDL * c_BDL.to(w_BDL.dtype),)

    return call


def _vtx_li(case: Case) -> Callable[..., Outputs]:
    ops = import_alone("vortex.ops.hcl_interface")
    times_L = torch.arange(case.length, device=case.device)

    def call(
        z_BEL: Tensor, featurizer_EK: Tensor, log_poles_DN: Tensor, residues_DN: Tensor, skip_D: Tensor
    ) -> Outputs:
        q_BDL, k_BDL, v_BDL = _causal(z_BEL, featurizer_EK).chunk(3, dim=1)
        filter_1DL = ops._hcl_compute_filter(residues_DN, log_poles_DN, times_L)[None]
        return (ops.hcl_fft_conv(filter_1DL, k_BDL * v_BDL, q_BDL, skip_D, case.length, 2 * case.length),)

    return call


def _fir(draw: Draw) -> dict[str, Tensor]:
    return draw.fir(groups=draw.case.width, skip=draw.case.op is Operator.HYENA_MR)


def _causal(x_BDL: Tensor, taps_DK: Tensor) -> Tensor:
    D, K = taps_DK.shape
    return conv1d(x_BDL, taps_DK[:, None], padding=K - 1, groups=D)[..., : x_BDL.shape[-1]]


def _gated_conv1d(z_BEL: Tensor, featurizer_EK: Tensor, taps_DK: Tensor, *skip: Tensor) -> Outputs:
    q_BDL, k_BDL, v_BDL = _causal(z_BEL, featurizer_EK).chunk(3, dim=1)
    w_BDL = k_BDL * v_BDL
    c_BDL = _causal(w_BDL, taps_DK)
    if skip:
        c_BDL = torch.addcmul(c_BDL, skip[0][:, None], w_BDL)
    return (q_BDL * c_BDL,)


def _flipped(op: Operator, *, filter_too: bool = True) -> Callable[..., Outputs]:
    """Our reference for filters whose last tap is on the current token."""

    def plain(z_BLE: Tensor, featurizer_EK: Tensor, filter_: Tensor, *rest: Tensor) -> Outputs:
        taps = filter_.flip(-1) if filter_too else filter_
        return hyena(op, "reference")(z_BLE, featurizer_EK.flip(-1), taps, *rest)[:1]

    return plain


def _time_last(plain: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """The same function of z [B, E, L], returning y [B, D, L]."""
    return lambda z_BEL, *parameters: (plain(z_BEL.mT, *parameters)[0].mT,)
