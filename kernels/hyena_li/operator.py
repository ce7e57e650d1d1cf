"""Hyena-LI: the Triton kernels where they can run, plain torch elsewhere."""

# B batch, L length, D width, E = 3D projected channels, K featurizer taps, N modes, S segments, P past inputs

from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend, limit_in_place, use_triton
from kernels.hyena_li import reference
from kernels.hyena_li.reference import ModalState

MAX_MODES, MAX_TAPS = 32, 4
_PROGRAMS = 4096  # enough of them fill a large GPU several times over
_CHANNELS = 64


def hyena_li(
    z_BLE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    state: ModalState | None = None,
    *,
    backend: Backend = Backend.AUTO,
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

    Raises:
        ValueError: `backend` is `triton` and the kernels cannot run this call; the message says why.
    """
    parameters = (featurizer_EK, featurizer_bias_E, log_poles_DN, residues_DN, skip_D)
    if not use_triton(Backend(backend), "hyena_li", z_BLE, limit(featurizer_EK, log_poles_DN)):
        return reference.hyena_li(z_BLE, *parameters, state)
    B, L, E = z_BLE.shape
    if state is None:
        past_BPE = z_BLE.new_zeros(B, featurizer_EK.shape[1] - 1, E)
        modes_BDN = z_BLE.new_zeros(B, *log_poles_DN.shape, dtype=torch.float32)
    else:
        past_BPE, modes_BDN = state.featurizer_BPE.to(z_BLE.dtype), state.modes_BDN.float()
    y_BLD, past_BPE, modes_BDN, _ = _forward(
        z_BLE,
        past_BPE,
        featurizer_EK.float(),
        None if featurizer_bias_E is None else featurizer_bias_E.float(),
        log_poles_DN.float(),
        residues_DN.float(),
        skip_D.float(),
        modes_BDN,
        segment_rows(B, L, E // 3),
    )
    return y_BLD, ModalState(past_BPE, modes_BDN)


@torch.no_grad()
def hyena_li_step(
    z_BE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    state: ModalState,
    *,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """Apply Hyena-LI to one token and move the state's tensors on IN PLACE; not differentiable.

    Args:
        z_BE: one token's projection a sequence, the rest as for `hyena_li`.
        state: the state before the token; the one after it when this returns.

    Returns:
        y_BD in z's dtype.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    parameters = (featurizer_EK, featurizer_bias_E, log_poles_DN, residues_DN, skip_D)
    reason = limit(featurizer_EK, log_poles_DN) or limit_in_place(*state, z_BE.dtype)
    if use_triton(Backend(backend), "hyena_li_step", z_BE, reason):
        return _step(z_BE, *parameters, *state)
    return reference.hyena_li_step(z_BE, *parameters, state)


def limit(featurizer_EK: Tensor, log_poles_DN: Tensor) -> str | None:
    """Say what keeps the kernels from these parameters; None if nothing does."""
    taps, modes = featurizer_EK.shape[1], log_poles_DN.shape[1]
    if taps > MAX_TAPS:
        return f"the featurizer has {taps} taps; the kernels take at most {MAX_TAPS}"
    if modes > MAX_MODES:
        return f"there are {modes} modes a channel; the kernels take at most {MAX_MODES}"
    return None


def segment_rows(B: int, L: int, D: int) -> int:
    """Choose how many rows a program walks down: as many as leave the GPU enough programs."""
    rows = 1024
    while rows > 64 and B * -(-L // rows) * -(-D // _CHANNELS) < _PROGRAMS:
        rows //= 2
    return rows


@torch.library.custom_op("evo::hyena_li", mutates_args=())
def _forward(
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    modes_BDN: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y_BLD, the featurizer's new state, the modes after the last row, and those before every segment."""
    from kernels.hyena_li.forward import forward

    with torch.cuda.device_of(z_BLE):
        y_BLD, modes_BDN, before_BSND = forward(
            *packed(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D, modes_BDN, rows)
        )
    return y_BLD, _last_inputs(z_BLE, past_BPE), modes_BDN, before_BSND


@_forward.register_fake
def _(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D, modes_BDN, rows):  # type: ignore[no-untyped-def]
    B, L, _ = z_BLE.shape
    D, N = log_poles_DN.shape
    return (
        z_BLE.new_empty(B, L, D),
        torch.empty_like(past_BPE),
        torch.empty_like(modes_BDN),
        modes_BDN.new_empty(B, -(-L // rows), N, D),
    )


@torch.library.custom_op("evo::hyena_li_backward", mutates_args=())
def _backward(
    dy_BLD: Tensor,
    dlast_BPE: Tensor | None,
    dmodes_BDN: Tensor | None,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    before_BSND: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of z, past, featurizer, bias (empty if none), log poles, residues, skip and modes."""
    from kernels.hyena_li.backward import backward

    B, (D, N) = z_BLE.shape[0], log_poles_DN.shape
    with torch.cuda.device_of(z_BLE):
        gradients = backward(
            dy_BLD.contiguous(),
            log_poles_DN.new_zeros(B, D, N) if dmodes_BDN is None else dmodes_BDN.contiguous(),
            *packed(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D, before_BSND, rows),
        )
    if dlast_BPE is not None:
        from_past = max(past_BPE.shape[1] - z_BLE.shape[1], 0)
        gradients[1][:, past_BPE.shape[1] - from_past :] += dlast_BPE[:, :from_past]
        gradients[0][:, z_BLE.shape[1] - past_BPE.shape[1] + from_past :] += dlast_BPE[:, from_past:]
    return gradients


@_backward.register_fake
def _(dy, dlast, dmodes, z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D, before_BSND, rows):  # type: ignore[no-untyped-def]
    return (
        z_BLE.new_empty(z_BLE.shape),
        past_BPE.new_empty(past_BPE.shape),
        featurizer_EK.new_empty(featurizer_EK.shape),
        featurizer_EK.new_empty(0 if bias_E is None else featurizer_EK.shape[0]),
        log_poles_DN.new_empty(log_poles_DN.shape),
        residues_DN.new_empty(residues_DN.shape),
        skip_D.new_empty(skip_D.shape),
        log_poles_DN.new_empty(z_BLE.shape[0], *log_poles_DN.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _modes_BDN, ctx.rows = inputs
    ctx.save_for_backward(*tensors, output[3])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, dmodes: Tensor | None, _: None) -> Any:
    z_BLE, *rest = ctx.saved_tensors
    if dy is None:
        dy = z_BLE.new_zeros(*z_BLE.shape[:2], z_BLE.shape[2] // 3)
    dz, dpast, dtaps, dbias, *others = _backward(dy, dlast, dmodes, z_BLE, *rest, ctx.rows)
    return dz, dpast, dtaps, None if rest[2] is None else dbias, *others, None


_forward.register_autograd(_differentiate, setup_context=_save)


def packed(z_BLE: Tensor, *others: Tensor | int | None) -> tuple[Any, ...]:
    """The kernels take z with any distance between rows, but a row in one piece; all other tensors contiguous."""
    z_BLE = z_BLE if z_BLE.stride(-1) == 1 else z_BLE.contiguous()
    return z_BLE, *(other.contiguous() if isinstance(other, Tensor) else other for other in others)


def _last_inputs(z_BLE: Tensor, past_BPE: Tensor) -> Tensor:
    """The last P of the past and new inputs, in memory of their own: a view would keep all of z alive."""
    L, P = z_BLE.shape[1], past_BPE.shape[1]
    if L >= P:
        return z_BLE[:, L - P :].clone(memory_format=torch.contiguous_format)
    return torch.cat([past_BPE[:, L:], z_BLE], dim=1)


@torch.library.custom_op("evo::hyena_li_step", mutates_args=("past_BPE", "modes_BDN"))
def _step(
    z_BE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    past_BPE: Tensor,
    modes_BDN: Tensor,
) -> Tensor:
    from kernels.hyena_li.step import step

    with torch.cuda.device_of(z_BE):
        inputs = (*packed(z_BE, featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D), past_BPE, modes_BDN)
        return step(*inputs)


@_step.register_fake
def _(z_BE, featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D, past_BPE, modes_BDN):  # type: ignore[no-untyped-def]
    return z_BE.new_empty(z_BE.shape[0], skip_D.shape[0])
