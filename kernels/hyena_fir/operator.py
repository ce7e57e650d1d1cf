"""Hyena-SE and Hyena-MR: the Triton kernels where they can run, plain torch elsewhere, both differentiable."""

# B batch, L length, D width, E = 3D projected channels, G filter groups, F featurizer taps, K inner taps

from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend, limit_in_place, use_triton
from kernels.hyena_fir import reference
from kernels.hyena_fir.reference import FirState

MAX_TAPS = 256
DIRECT_TAPS = 16  # up to here a filter fits in registers, and one product a tap is cheaper than Toeplitz matrices


def hyena_fir(
    z_BLE: Tensor,
    featurizer_EF: Tensor,
    featurizer_bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    state: FirState | None = None,
    *,
    backend: Backend = Backend.AUTO,
) -> tuple[Tensor, FirState]:
    """Apply Hyena-SE or Hyena-MR to a projection (paper eq. 1).

    Sums are float32 (float64 for float64 inputs), rounded once at the end; products with more than 16 taps take the
    gated input and the taps in z's dtype on tensor cores.

    Args:
        z_BLE: the projection, in thirds: post-gate q, pre-gate k, value v.
        featurizer_EF: featurizer taps, tap 0 on the current token. featurizer_bias_E: added after it, or None.
        taps_GK: inner filter, one a group of channels; Hyena-MR's decay window is already in it.
        skip_D: direct path of the gated input, or None.
        state: what the last call returned; None starts a sequence.

    Returns:
        y_BLD in z's dtype, and the state that continues the sequence.

    Raises:
        ValueError: `backend` is `triton` and the kernels cannot run this call; the message says why.
    """
    taps = taps_GK.shape[1]
    limit = f"{taps} inner taps; the kernels take at most {MAX_TAPS}" if taps > MAX_TAPS else None
    if not use_triton(backend, "hyena_fir", z_BLE, limit):
        return reference.hyena_fir(z_BLE, featurizer_EF, featurizer_bias_E, taps_GK, skip_D, state)
    B, _, E = z_BLE.shape
    if state is None:
        z_past = z_BLE.new_zeros(B, featurizer_EF.shape[1] - 1, E)
        w_past = z_BLE.new_zeros(B, taps - 1, E // 3, dtype=torch.float32)
    else:
        z_past, w_past = state.featurizer_BPE.to(z_BLE.dtype), state.inner_BPD.float()
    y_BLD, w_last = _forward(
        z_BLE,
        z_past,
        w_past,
        featurizer_EF.float(),
        None if featurizer_bias_E is None else featurizer_bias_E.float(),
        taps_GK.float(),
        None if skip_D is None else skip_D.float(),
    )
    return y_BLD, FirState(last_rows(z_past, z_BLE), w_last)


@torch.no_grad()
def hyena_fir_step(
    z_BE: Tensor,
    featurizer_EF: Tensor,
    featurizer_bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    state: FirState,
    *,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """Apply Hyena-SE or Hyena-MR to one token and move the state's tensors on IN PLACE; not differentiable.

    Args:
        z_BE: one token's projection a sequence, the rest as for `hyena_fir`, of any number of taps.
        state: the state before the token; the one after it when this returns.

    Returns:
        y_BD in z's dtype.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    parameters = (featurizer_EF, featurizer_bias_E, taps_GK, skip_D)
    if use_triton(backend, "hyena_fir_step", z_BE, limit_in_place(*state, z_BE.dtype)):
        return _step(z_BE, *parameters, *state)
    return reference.hyena_fir_step(z_BE, *parameters, state)


def last_rows(past_BPE: Tensor, z_BLE: Tensor) -> Tensor:
    """Return the P rows before the next call's first, as a copy: the state must not keep the projection alive."""
    num_past, length = past_BPE.shape[1], z_BLE.shape[1]
    if length >= num_past:
        return z_BLE[:, length - num_past :].clone()
    return torch.cat([past_BPE[:, length:], z_BLE], dim=1)


@torch.library.custom_op("evo::hyena_fir", mutates_args=())
def _forward(
    z: Tensor,
    z_past: Tensor,
    w_past: Tensor,
    featurizer: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    skip: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from kernels.hyena_fir import launch

    run = launch.direct_forward if taps.shape[1] <= DIRECT_TAPS else launch.banded_forward
    with torch.cuda.device_of(z):
        return run(launch.Inputs(z, z_past, w_past, featurizer, bias, taps, skip))


@_forward.register_fake
def _(
    z: Tensor,
    z_past: Tensor,
    w_past: Tensor,
    featurizer: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    skip: Tensor | None,
) -> tuple[Tensor, Tensor]:
    B, L, E = z.shape
    return z.new_empty(B, L, E // 3), torch.empty_like(w_past)


@torch.library.custom_op("evo::hyena_fir_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dw_last: Tensor | None,
    z: Tensor,
    z_past: Tensor,
    w_past: Tensor,
    featurizer: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    skip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from kernels.hyena_fir import launch

    run = launch.direct_backward if taps.shape[1] <= DIRECT_TAPS else launch.banded_backward
    with torch.cuda.device_of(z):
        return run(dy, dw_last, launch.Inputs(z, z_past, w_past, featurizer, bias, taps, skip))


@_backward.register_fake
def _(
    dy: Tensor,
    dw_last: Tensor | None,
    z: Tensor,
    z_past: Tensor,
    w_past: Tensor,
    featurizer: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    skip: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    E, D = featurizer.shape[0], w_past.shape[2]
    return (
        z.new_empty(z.shape),
        torch.empty_like(z_past),
        torch.empty_like(w_past),
        torch.empty_like(featurizer),
        featurizer.new_empty(E),
        torch.empty_like(taps),
        featurizer.new_empty(D),
    )


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dw_last: Tensor | None) -> tuple[Tensor | None, ...]:
    z, z_past, w_past, featurizer, bias, taps, skip = ctx.saved_tensors
    if dy is None:
        dy = z.new_zeros(*z.shape[:2], w_past.shape[2])
    dz, dz_past, dw_past, dfeaturizer, dbias, dtaps, dskip = _backward(
        dy, dw_last, z, z_past, w_past, featurizer, bias, taps, skip
    )
    return dz, dz_past, dw_past, dfeaturizer, None if bias is None else dbias, dtaps, None if skip is None else dskip


_forward.register_autograd(_differentiate, setup_context=_save)


def _packed(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


@torch.library.custom_op("evo::hyena_fir_step", mutates_args=("past_BPE", "inner_BPD"))
def _step(
    z_BE: Tensor,
    featurizer_EF: Tensor,
    bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    past_BPE: Tensor,
    inner_BPD: Tensor,
) -> Tensor:
    from kernels.hyena_fir.step import step

    with torch.cuda.device_of(z_BE):
        return step(
            z_BE if z_BE.stride(1) == 1 else z_BE.contiguous(),
            featurizer_EF.contiguous(),
            _packed(bias_E),
            taps_GK.contiguous(),
            _packed(skip_D),
            past_BPE,
            inner_BPD,
        )


@_step.register_fake
def _(
    z_BE: Tensor,
    featurizer_EF: Tensor,
    bias_E: Tensor | None,
    taps_GK: Tensor,
    skip_D: Tensor | None,
    past_BPE: Tensor,
    inner_BPD: Tensor,
) -> Tensor:
    return z_BE.new_empty(z_BE.shape[0], z_BE.shape[1] // 3)
