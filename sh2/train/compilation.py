"""Compiling a model for training. Knows nothing of data or of how a step is made.

By halves of blocks, not the model as a whole: halves of a kind share a graph, so that 32 layers start as fast as 4, and
what training wraps around a block or a half, to share its weights or to run it again, stays outside of the graphs.
Parameters keep their names; nothing that is saved changes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from sh2.errors import Sh2Error
from sh2.model import Block, StripedHyena2
from sh2.recompute import Recompute
from sh2.rerun import run_half
from sh2.train.loss import LossSums, loss_sums

BACKEND = "inductor"  # of torch.compile
# kinds of blocks, times batches of training and validation, each with its own size; torch expects fewer of one function
_MOST_GRAPHS = 64


def compile_blocks(model: StripedHyena2, *, in_one_graph: bool = True) -> None:
    """Let both halves of a block, and the last norm, be graphs without breaks, made when they first meet a size.

    They are the halves of whole sequences; what carries a state is left as it is. Choose before what is made again.

    Args:
        in_one_graph: each half is one; not where processes exchange something within it.

    Raises:
        Sh2Error: torch.compile does not work on this machine, for the model's device.
    """
    try:
        torch.compile(torch.neg, backend=BACKEND)(model.embedding.weight.new_zeros(1))
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = error.inner_exception if isinstance(error, torch._dynamo.exc.BackendCompilerFailed) else error
        reason = str(cause).strip().split("\n")[0]
        raise Sh2Error(f"torch.compile does not work here: {reason}").hint("train with `--no-compile`") from None
    model.norm.compile(fullgraph=True, dynamic=False, backend=BACKEND)
    for block in model.blocks:
        assert isinstance(block, Block)
        for name, by_token in (("mix", False), ("feed", not block.mixes_twice)):
            half = getattr(block, name)
            if block.recompute is Recompute.SELECTIVE:  # what single operations keep, a graph decides when it is made
                half = partial(_run_again, getattr(Block, name), block, recompute=block.recompute, by_token=by_token)
            compiled = torch.compile(half, fullgraph=in_one_graph, dynamic=False, backend=BACKEND)
            vars(block)[name] = compiled  # over the class's method
        if block.recompute is Recompute.SELECTIVE:
            block.recompute = Recompute.NONE


def _run_again(half: Callable[[Block, Tensor], Tensor], block: Block, x_BLD: Tensor, **how: Any) -> Tensor:
    # a function and its block, not a method: torch 2.11 takes one method of a block for another
    return run_half(partial(half, block), x_BLD, **how)


def compiled_loss_sums(logits_BLV: Tensor, targets_BL: Tensor, weights_BL: Tensor) -> LossSums:
    """`loss_sums` as one graph."""
    return _compiled_loss_sums(BACKEND)(logits_BLV, targets_BL, weights_BL)


@cache
def _compiled_loss_sums(backend: str) -> Callable[[Tensor, Tensor, Tensor], LossSums]:
    return torch.compile(loss_sums, fullgraph=True, dynamic=False, backend=backend)


def many_graphs() -> AbstractContextManager[None]:
    """Within this, one function may have as many graphs as the blocks of a model have kinds and sizes."""
    return torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS)
