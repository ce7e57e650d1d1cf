"""The way into context parallelism: a model whose mixers share one sequence between processes.

    context = parallelise(model, group)                  # the sequence's processes, each with the same weights
    logits, _ = model(context.shard(tokens[:, :-1]))     # every process runs its shard, as if it saw all of it
    sums = loss_sums(logits, context.shard(tokens[:, 1:]), context.shard(weights))
    (sums.weighted_nats / weights.sum()).backward()      # the weights of the whole sequence: every process has them
    context.sum_gradients(model)

Targets, weights and masks are made of whole sequences before these are cut, and a loss is summed over processes before
it is divided: it does not depend on their number. Nothing but the mixers looks across tokens, so nothing but their
`forward` is replaced; parameters keep their names, and hold the gradients of the shard until these are summed.
"""

# B batch, L tokens of a rank, D width, V vocabulary

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernels import hyena_fir, hyena_li, hyena_li_piece
from sh2.errors import Sh2Error
from sh2.mixers import Attention, HyenaLI
from sh2.mixers.cache import KVDtype
from sh2.mixers.hyena import HyenaFir
from sh2.model import StripedHyena2
from sh2.parallel import all_to_all, fft, halo, modal, ring
from sh2.parallel.exchange import Ranks
from sh2.parallel.halo import Filters
from sh2.parallel.sharding import Shards
from sh2.sharing import AttentionMethod, ConvolutionMethod, Sharding
from sh2.state import ModelState

Convolve = Callable[[Ranks, Callable[..., Any], Filters, Tensor], Tensor]


_FIR: dict[ConvolutionMethod, Convolve] = {
    ConvolutionMethod.STATE: halo.by_state,
    ConvolutionMethod.A2A: all_to_all.by_channels,
    ConvolutionMethod.A2A_PIPELINED: all_to_all.by_channels_pipelined,
    ConvolutionMethod.P2P: halo.by_halo,
    ConvolutionMethod.P2P_OVERLAPPED: halo.by_halo_overlapped,
    ConvolutionMethod.P2P_FFT: halo.by_halo_overlapped,
}
_MODAL: dict[ConvolutionMethod, tuple[Convolve, Callable[..., Any]]] = {
    ConvolutionMethod.STATE: (modal.by_state, hyena_li_piece),
    ConvolutionMethod.A2A: (all_to_all.by_channels, hyena_li),
    ConvolutionMethod.A2A_PIPELINED: (all_to_all.by_channels_pipelined, hyena_li),
    ConvolutionMethod.P2P: (modal.by_state, hyena_li_piece),
    ConvolutionMethod.P2P_OVERLAPPED: (modal.by_state, hyena_li_piece),
    ConvolutionMethod.P2P_FFT: (fft.by_fft, hyena_li),
}
_ATTENTION = {AttentionMethod.RING: ring.ring, AttentionMethod.A2A: all_to_all.heads}
Kind = TypeVar("Kind", bound=StrEnum)
_WORDS: dict[type[StrEnum], str] = {
    Sharding: "sharding",
    ConvolutionMethod: "method of context parallelism for convolutions",
    AttentionMethod: "method of context parallelism for attention",
}
_BY_CHANNELS = (ConvolutionMethod.A2A, ConvolutionMethod.A2A_PIPELINED)


class ContextParallel:
    """The processes that share sequences, for whoever feeds a model and sums what comes out."""

    def __init__(self, group: dist.ProcessGroup, sharding: Sharding) -> None:
        self.ranks = Ranks(group, Shards(rank=group.rank(), ranks=group.size(), sharding=sharding))

    def shard(self, whole_BL: Tensor) -> Tensor:
        """Return this rank's part of whole sequences [B, L, ...], as a copy.

        Raises:
            Sh2Error: the sequences cannot be cut into equal pieces.
        """
        return self.ranks.shards.take(whole_BL)

    def gather(self, part_BL: Tensor) -> Tensor:
        """Return whole sequences, on every rank, of the parts [B, L / ranks, ...] of all; without gradients."""
        parts = [
            torch.empty_like(part_BL, memory_format=torch.contiguous_format) for _ in range(self.ranks.shards.ranks)
        ]
        dist.all_gather(parts, part_BL.detach().contiguous(), group=self.ranks.group)
        return self.ranks.shards.join(parts)

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on every rank; without gradients."""
        total = part.detach().clone()
        dist.all_reduce(total, group=self.ranks.group)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of all parameters over the ranks, in place; for who has no FSDP or DDP that does."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        works = [dist.all_reduce(gradient, group=self.ranks.group, async_op=True) for gradient in gradients]
        for work in works:
            work.wait()


def parallelise(
    model: StripedHyena2,
    group: dist.ProcessGroup | None = None,
    *,
    sharding: str = Sharding.CONTIGUOUS,
    convolution: str = ConvolutionMethod.STATE,
    attention: str = AttentionMethod.RING,
) -> ContextParallel:
    """Let a model run a shard of its sequences on each process of a group.

    From here on it takes token ids of a shard, and neither states nor document starts; the state that it returns is
    empty. A group of one process leaves it as it is. Do this before anything else that wraps or compiles its blocks.

    Args:
        model: the same weights on every process.
        group: a dimension of a mesh is `mesh["cp"].get_group()`; None is all processes.
        sharding: `contiguous`, or `zigzag`, which gives ring attention the same work on every rank.
        convolution: a `ConvolutionMethod`.
        attention: an `AttentionMethod`.

    Raises:
        Sh2Error: a name is unknown, or the model cannot be shared so by that many processes.
    """
    methods = _named(ConvolutionMethod, convolution), _named(AttentionMethod, attention)
    group = group or dist.group.WORLD
    if group is None:
        raise Sh2Error("there are no processes to share sequences").hint(
            "start them with torchrun, and call torch.distributed.init_process_group"
        )
    context = ContextParallel(group, _named(Sharding, sharding))
    ranks = context.ranks
    for name, module in model.named_modules():
        _check(name, module, ranks.shards.ranks, *methods)
    if ranks.shards.ranks == 1:
        return context
    # torch.compile traces no exchanges: it leaves a graph before one and enters another behind it
    through, operator = _MODAL[methods[0]]
    fir, long, attend = map(torch.compiler.disable, (_FIR[methods[0]], through, _ATTENTION[methods[1]]))
    for module in model.modules():
        match module:
            case HyenaFir():
                _replace(module, "forward", partial(_convolved, module, hyena_fir, fir, ranks))
            case HyenaLI():
                _replace(module, "forward", partial(_convolved, module, operator, long, ranks))
            case Attention():
                _replace(module, "forward", partial(_attended, module, attend, ranks))
    _replace(model, "hidden", partial(_hidden, model.hidden, ranks))
    return context


def _replace(module: nn.Module, method: str, function: Callable[..., Any]) -> None:
    """Give one module a method of its own, over its class's."""
    vars(module)[method] = function


def _convolved(
    mixer: HyenaFir | HyenaLI,
    operator: Callable[..., Any],
    convolve: Convolve,
    ranks: Ranks,
    x_BLD: Tensor,
    _: None = None,
) -> tuple[Tensor, None]:
    operator = partial(operator, backend=mixer.backend)
    return mixer.output(convolve(ranks, operator, mixer.filters(), mixer.input(x_BLD))), None


def _attended(
    mixer: Attention, attend: Callable[..., Tensor], ranks: Ranks, x_BLD: Tensor, _: None = None
) -> tuple[Tensor, None]:
    positions_1L = ranks.shards.positions(x_BLD.shape[1], x_BLD.device)[None]
    q_BLHc, new = mixer.project(x_BLD, positions_1L)
    keys_BLJc, values_BLJc = new.as_kept(mixer.kv_dtype is KVDtype.FP8).numbers(x_BLD.dtype)
    return mixer.output(attend(ranks, q_BLHc, keys_BLJc, values_BLJc).flatten(2)), None


def _hidden(
    hidden: Callable[..., tuple[Tensor, Any]],
    ranks: Ranks,
    ids_BL: Tensor,
    state: ModelState | None = None,
    *,
    document_starts_BL: Tensor | None = None,
) -> tuple[Tensor, ModelState]:
    if state is not None:
        raise Sh2Error("a context-parallel model runs whole sequences; it cannot continue a state")
    if document_starts_BL is not None:
        raise Sh2Error("context parallelism knows no document starts within a sequence").hint(
            "train without resetting at documents, or without context parallelism"
        )
    if ids_BL.shape[1] % ranks.shards.per_rank:
        raise Sh2Error(f"{ids_BL.shape[1]} tokens are no shard: they cannot be cut into two equal pieces").hint(
            "let `ContextParallel.shard` cut whole sequences"
        )
    x_BLD, _ = hidden(ids_BL)
    return x_BLD, ()


def _check(
    name: str, module: nn.Module, ranks: int, convolution: ConvolutionMethod, attention: AttentionMethod
) -> None:
    """Refuse a mixer that cannot be shared by that many ranks."""
    shares: dict[str, int] = {}
    if isinstance(module, HyenaFir) and convolution in _BY_CHANNELS:
        shares["filter groups"] = module.taps.shape[0]
    if isinstance(module, HyenaLI) and convolution in _BY_CHANNELS:
        shares["channels"] = module.residues.shape[0]
    if isinstance(module, Attention) and attention is AttentionMethod.A2A:
        shares |= {"heads": module.num_heads, "key-value heads": module.num_kv_heads}
    for what, count in shares.items():
        if count % ranks:
            raise Sh2Error(f"method a2a: the {count} {what} of `{name}` cannot be shared out to {ranks} ranks").hint(
                "use a number of ranks that divides them, or another method"
            )
    if isinstance(module, HyenaLI) and convolution is ConvolutionMethod.P2P_FFT and ranks & (ranks - 1):
        raise Sh2Error(f"method p2p-fft needs a number of ranks that is a power of two, not {ranks}").hint(
            "the method state takes any"
        )
    if "forward" in vars(module):
        raise Sh2Error("the model is context-parallel already")


def _named(kinds: type[Kind], name: str) -> Kind:
    try:
        return kinds(name)
    except ValueError:
        raise Sh2Error(f"unknown {_WORDS[kinds]} `{name}`").hint(f"use {', '.join(kinds)}") from None
