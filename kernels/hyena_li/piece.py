"""Hyena-LI over a piece of a sequence whose modes before it are not known yet, but only what came in just before.

The piece is run in two halves. The first gives what it adds to the modes, which whoever has the pieces before and after
waits for; the second gives its outputs from the modes that came of that. Together they do what `hyena_li` does, once:

    forward     what every segment adds to the modes      |  carried from the modes before the piece: its outputs
    backward    what every segment adds to the adjoints   |  carried from the gradient of what it added: the walks

Autograd sees two functions, and backward runs them the other way round: that of the outputs gives no more than the
gradient of the modes before the piece, and leaves the rest to that of the summary, which by then knows the gradient of
what the piece added.
"""

# B batch, L length, D width, E = 3D projected channels, K featurizer taps, N modes, S segments, P past inputs

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend, use_triton
from kernels.hyena_li import reference
from kernels.hyena_li.operator import limit, packed, segment_rows


@dataclass(frozen=True)
class ModalPiece:
    """A piece that has been summed up."""

    added_BDN: Tensor
    """What it adds to the modes: those after its last token, had those before its first been zero."""
    outputs: Callable[[Tensor], Tensor]
    """Gives y_BLD, in z's dtype, of the modes [B, D, N] before the first token; to be called once."""


def hyena_li_piece(
    z_BLE: Tensor,
    featurizer_EK: Tensor,
    featurizer_bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    past_BPE: Tensor,
    *,
    backend: Backend = Backend.AUTO,
) -> ModalPiece:
    """Sum up a piece of a sequence for `hyena_li`, whose arguments these are, before the modes before it are known.

    With s the modes before the piece, `outputs(s)` are the outputs of `hyena_li` from the state (past, s), and the
    modes after the piece are `added + exp(log_poles L) s`. All of it can be differentiated, by everything.

    Args:
        past_BPE: the last projected inputs before the piece; zeros start a sequence.

    Raises:
        ValueError: `backend` is `triton` and the kernels cannot run this call; the message says why.
    """
    parameters = (featurizer_EK, featurizer_bias_E, log_poles_DN, residues_DN, skip_D)
    if not use_triton(Backend(backend), "hyena_li_piece", z_BLE, limit(featurizer_EK, log_poles_DN)):
        added_BDN, kept = reference.summary(z_BLE, *parameters, past_BPE)
        return ModalPiece(added_BDN, lambda modes_BDN: reference.outputs(kept, modes_BDN).to(z_BLE.dtype))
    inputs = (
        z_BLE,
        past_BPE.to(z_BLE.dtype),
        *(None if tensor is None else tensor.float() for tensor in parameters),
        segment_rows(z_BLE.shape[0], z_BLE.shape[1], z_BLE.shape[2] // 3),
    )
    visit = _Visit()
    gifts_BSND, added_BDN = _Summary.apply(visit, *inputs)
    return ModalPiece(added_BDN, partial(_outputs, visit, gifts_BSND, inputs))


def _outputs(visit: "_Visit", gifts_BSND: Tensor, inputs: tuple[Any, ...], modes_BDN: Tensor) -> Tensor:
    if visit.asked:
        raise ValueError("hyena_li_piece: the outputs of a piece can be asked for once; sum it up again")
    visit.asked = True
    y_BLD: Tensor = _Outputs.apply(visit, gifts_BSND, modes_BDN.float(), *inputs)
    return y_BLD


class _Visit:
    """What the outputs' backward leaves to the summary's: dy_BLD, the modes before the piece, what adds to adjoints."""

    asked = False
    left: tuple[Tensor, Tensor, Tensor] | None = None


class _Summary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visit: _Visit, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.rows = inputs
        ctx.visit = visit
        gifts_BSND, added_BDN = _summary(*tensors[:5], ctx.rows)
        ctx.save_for_backward(*tensors, gifts_BSND)
        ctx.set_materialize_grads(False)
        return gifts_BSND, added_BDN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, gifts_BSND = ctx.saved_tensors
        z_BLE, _, _, bias_E, log_poles_DN, *_ = tensors
        nothing_BDN = log_poles_DN.new_zeros(len(z_BLE), *log_poles_DN.shape)
        left = ctx.visit.left
        if left is None:  # nothing has come of the outputs
            nothing_BLD = z_BLE.new_zeros(*z_BLE.shape[:2], len(log_poles_DN))
            left = nothing_BLD, nothing_BDN, torch.zeros_like(gifts_BSND)
        ctx.visit.left = None
        added_BDN = nothing_BDN if grads[1] is None else grads[1]
        dz, dpast, dtaps, dbias, *others = _gradients(added_BDN, *left, *tensors, gifts_BSND, ctx.rows)
        return None, dz, dpast, dtaps, None if bias_E is None else dbias, *others, None


class _Outputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visit: _Visit, gifts_BSND: Tensor, modes_BDN: Tensor, *inputs: Any) -> Tensor:
        *tensors, ctx.rows = inputs
        ctx.visit = visit
        ctx.save_for_backward(modes_BDN, *tensors[:6])
        return _outputs_of(modes_BDN, *tensors, gifts_BSND, ctx.rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        modes_BDN, *tensors = ctx.saved_tensors
        gifts_BSND, dmodes_BDN = _summary_of_gradients(grads[0], *tensors, ctx.rows)
        ctx.visit.left = grads[0], modes_BDN, gifts_BSND
        return None, None, dmodes_BDN, *[None] * (len(tensors) + 2)


@torch.library.custom_op("evo::hyena_li_summary", mutates_args=())
def _summary(
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Return what every segment adds to the modes, and the modes after the last row, from zero."""
    from kernels.hyena_li.forward import summary

    with torch.cuda.device_of(z_BLE):
        return summary(*packed(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, rows))


@_summary.register_fake
def _(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, rows):  # type: ignore[no-untyped-def]
    return _fake_summary(z_BLE, log_poles_DN, rows)


@torch.library.custom_op("evo::hyena_li_outputs", mutates_args=())
def _outputs_of(
    modes_BDN: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    gifts_BSND: Tensor,
    rows: int,
) -> Tensor:
    """Return y_BLD of the modes before the piece and what every segment adds to them."""
    from kernels.hyena_li.forward import carry, outputs

    with torch.cuda.device_of(z_BLE):
        before_BSND = torch.empty_like(gifts_BSND)
        carry(log_poles_DN.contiguous(), modes_BDN.contiguous(), gifts_BSND, before_BSND, rows)
        filters = (featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D)
        return outputs(*packed(z_BLE, past_BPE, *filters, before_BSND, rows))[0]


@_outputs_of.register_fake
def _(modes, z_BLE, past, featurizer, bias, log_poles_DN, residues, skip, gifts, rows):  # type: ignore[no-untyped-def]
    return z_BLE.new_empty(*z_BLE.shape[:2], len(log_poles_DN))


@torch.library.custom_op("evo::hyena_li_summary_of_gradients", mutates_args=())
def _summary_of_gradients(
    dy_BLD: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Return what every segment adds to the adjoints, and the gradient of the modes before the piece."""
    from kernels.hyena_li.backward import summary

    with torch.cuda.device_of(z_BLE):
        inputs = packed(z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, residues_DN, rows)
        return summary(dy_BLD.contiguous(), *inputs)


@_summary_of_gradients.register_fake
def _(dy_BLD, z_BLE, past_BPE, featurizer_EK, bias_E, log_poles_DN, residues_DN, rows):  # type: ignore[no-untyped-def]
    return _fake_summary(z_BLE, log_poles_DN, rows)


@torch.library.custom_op("evo::hyena_li_gradients", mutates_args=())
def _gradients(
    dadded_BDN: Tensor,
    dy_BLD: Tensor,
    modes_BDN: Tensor,
    back_BSND: Tensor,
    z_BLE: Tensor,
    past_BPE: Tensor,
    featurizer_EK: Tensor,
    bias_E: Tensor | None,
    log_poles_DN: Tensor,
    residues_DN: Tensor,
    skip_D: Tensor,
    gifts_BSND: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of z, past, featurizer, bias (empty if none), log poles, residues and skip."""
    from kernels.hyena_li.backward import carry_back, gradients
    from kernels.hyena_li.forward import carry

    L, F = z_BLE.shape[1], featurizer_EK.shape[1]
    filters = (featurizer_EK, bias_E, log_poles_DN, residues_DN, skip_D)
    modes_BDN, dadded_BDN = modes_BDN.contiguous(), dadded_BDN.contiguous()
    poles = log_poles_DN.contiguous(), residues_DN.contiguous()
    with torch.cuda.device_of(z_BLE):
        before_BSND, after_BSND = torch.empty_like(gifts_BSND), torch.empty_like(back_BSND)
        carry(poles[0], modes_BDN, gifts_BSND, before_BSND, rows)
        carry_back(*poles, dadded_BDN, back_BSND, after_BSND, L, F, rows)
        inputs = packed(z_BLE, past_BPE, *filters, before_BSND, after_BSND, rows)
        dz, dpast, dtaps, dbias, dlog_poles_DN, dresidues, dskip, _ = gradients(dy_BLD.contiguous(), *inputs)
        # the walks see modes and adjoints whole: the modes before the piece are no part of what it adds
        dlog_poles_DN -= L * torch.exp(log_poles_DN * L) * (modes_BDN * dadded_BDN).sum(0)
    return dz, dpast, dtaps, dbias, dlog_poles_DN, dresidues, dskip


@_gradients.register_fake
def _(dadded, dy, modes, back, z, past, featurizer, bias, log_poles, residues, skip, gifts, rows):  # type: ignore[no-untyped-def]
    return (
        z.new_empty(z.shape),
        past.new_empty(past.shape),
        featurizer.new_empty(featurizer.shape),
        featurizer.new_empty(0 if bias is None else featurizer.shape[0]),
        log_poles.new_empty(log_poles.shape),
        residues.new_empty(residues.shape),
        skip.new_empty(skip.shape),
    )


def _fake_summary(z_BLE: Tensor, log_poles_DN: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    B, L, _ = z_BLE.shape
    D, N = log_poles_DN.shape
    return log_poles_DN.new_empty(B, -(-L // rows), N, D), log_poles_DN.new_empty(B, D, N)
