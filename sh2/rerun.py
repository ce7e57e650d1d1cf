"""Running blocks so that a forward keeps less for its backward, which runs them again. Knows no layer of a model."""

# B batch, L length, D width

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sh2.recompute import PIECE, Recompute, group_size

Half = Callable[[Tensor], Tensor]


def run_half(half: Half, x_BLD: Tensor, recompute: Recompute, *, by_token: bool) -> Tensor:
    """Run one half of a block, keeping as little as asked for.

    Args:
        by_token: whether the half looks at one token at a time, so that it can be made again in pieces.
    """
    if recompute is Recompute.NONE or not torch.is_grad_enabled():
        return half(x_BLD)
    if recompute is Recompute.SELECTIVE:
        return _again(half, x_BLD, context_fn=partial(_keeping_products, x_BLD.shape[-1]))
    step = max(1, PIECE // x_BLD.shape[0])
    if not by_token or x_BLD.shape[1] <= step:
        return _again(half, x_BLD)
    return torch.cat([_again(half, piece) for piece in x_BLD.split(step, dim=1)], dim=1)


def run_blocks(blocks: Sequence[nn.Module], x_BLD: Tensor, recompute: Recompute) -> Tensor:
    """Run blocks over whole sequences, without states."""
    if recompute is not Recompute.NESTED or not torch.is_grad_enabled():
        return _run(blocks, x_BLD)
    size = group_size(len(blocks))
    for first in range(0, len(blocks), size):
        x_BLD = _again(partial(_run, blocks[first : first + size]), x_BLD)
    return x_BLD


def _run(blocks: Sequence[nn.Module], x_BLD: Tensor) -> Tensor:
    for block in blocks:
        x_BLD, _ = block(x_BLD, stateless=True)
    return x_BLD


def _again(function: Half, x_BLD: Tensor, **options: Any) -> Tensor:
    # nothing in a model is random
    return checkpoint(function, x_BLD, use_reentrant=False, preserve_rng_state=False, **options)


_OPS = torch.ops.aten
_PRODUCTS = {_OPS.mm.default, _OPS.addmm.default, _OPS.bmm.default, _OPS.baddbmm.default, _OPS._scaled_mm.default}
_OPERATORS = ("_scaled_dot_product", "hyena_")  # of torch's attention and of our kernels


def _keeping_products(width: int) -> Any:
    """Contexts for `checkpoint`, in which products that lead to another width than the stream's are kept.

    Those that lead back to it end a half, and nothing needs them again; those of an adapter, which lead away from its
    few channels, are as large as its layer's and cheap to make.
    """

    def policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operation in _PRODUCTS:
            right = args[2] if operation in (_OPS.addmm.default, _OPS.baddbmm.default) else args[1]
            kept = right.ndim == 3 or (right.shape[-1] != width and 4 * right.shape[0] > width)
        else:
            kept = operation.__name__.startswith(_OPERATORS)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
