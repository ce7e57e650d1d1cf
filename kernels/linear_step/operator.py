"""Linear layers of a few rows: the Triton kernel where it can run, plain torch elsewhere."""

# M rows, D inputs, E outputs, I inner width; X any leading dimensions

import torch
from torch import Tensor

from kernels.backend import Backend, use_triton
from kernels.linear_step import reference

MOST_ROWS = 4  # with more, products on tensor cores are as fast


def few_rows(x_XD: Tensor) -> bool:
    """Whether x has as few rows as these operators are for."""
    return x_XD.numel() <= MOST_ROWS * x_XD.shape[-1]


@torch.no_grad()
def linear_step(
    x_XD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None = None,
    *,
    scale_D: Tensor | None = None,
    eps: float = 0.0,
    onto_XE: Tensor | None = None,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """y = onto + weight norm(x) + bias for a few rows, in one launch; not differentiable.

    Args:
        x_XD: any leading dimensions.
        scale_D, eps: of RMSNorm before the layer, with eps on the root; no scale is no norm.
        onto_XE: what the outputs are added to.

    Returns:
        y_XE in the dtype of x: sums are float32, rounded after the layer and after the sum.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call; the message says why.
    """
    if not use_triton(backend, "linear_step", x_XD, _limit(x_XD, weight_ED, onto_XE)):
        return reference.linear_step(x_XD, weight_ED, bias_E, scale_D=scale_D, eps=eps, onto_XE=onto_XE)
    return _step(x_XD, weight_ED, None, bias_E, scale_D, eps, onto_XE, None)


@torch.no_grad()
def gated_step(
    x_XD: Tensor,
    gate_ID: Tensor,
    up_ID: Tensor,
    *,
    scale_D: Tensor,
    eps: float,
    activation: str,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """y = act(gate norm(x)) * up norm(x) for a few rows, in one launch; not differentiable.

    Args, returns and raises as for `linear_step`, and:
        activation: `gelu` (exact, by the error function), `silu` or `identity`.
    """
    if not use_triton(backend, "gated_step", x_XD, _limit(x_XD, gate_ID, None)):
        return reference.gated_step(x_XD, gate_ID, up_ID, scale_D=scale_D, eps=eps, activation=activation)
    return _step(x_XD, gate_ID, up_ID, None, scale_D, eps, None, str(activation))


def _limit(x_XD: Tensor, weight_ED: Tensor, onto_XE: Tensor | None) -> str | None:
    if not few_rows(x_XD):
        return f"there are {x_XD.numel() // x_XD.shape[-1]} rows; the kernel takes at most {MOST_ROWS}"
    if weight_ED.dtype is not x_XD.dtype or (onto_XE is not None and onto_XE.dtype is not x_XD.dtype):
        return "the dtypes differ"
    return None


@torch.library.custom_op("evo::linear_step", mutates_args=())
def _step(
    x_XD: Tensor,
    weight_ED: Tensor,
    up_ED: Tensor | None,
    bias_E: Tensor | None,
    scale_D: Tensor | None,
    eps: float,
    onto_XE: Tensor | None,
    activation: str | None,
) -> Tensor:
    from kernels.linear_step.step import step

    with torch.cuda.device_of(x_XD):
        E = weight_ED.shape[0]
        y_ME = step(
            x_XD.reshape(-1, x_XD.shape[-1]).contiguous(),
            weight_ED.contiguous(),
            None if up_ED is None else up_ED.contiguous(),
            None if bias_E is None else bias_E.contiguous(),
            None if scale_D is None else scale_D.contiguous(),
            eps,
            None if onto_XE is None else onto_XE.reshape(-1, E).contiguous(),
            activation,
        )
        return y_ME.view(*x_XD.shape[:-1], E)


@_step.register_fake
def _(x_XD, weight_ED, up_ED, bias_E, scale_D, eps, onto_XE, activation):  # type: ignore[no-untyped-def]
    return x_XD.new_empty(*x_XD.shape[:-1], weight_ED.shape[0])
