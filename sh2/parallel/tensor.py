"""Tensor parallelism: every process computes a share of the channels, heads and filter groups of each block.

Projections into a block are cut by rows and projections out of it by columns, so a mixer or a feed-forward layer costs
one sum over processes, forward and backward. Between the projections nothing looks across channels but filter groups,
which are never cut: gates, filters and attention run as they are, on fewer channels. Embeddings, norms and the biases
that are added behind a sum are whole everywhere. What a rank holds of a tensor is a `Cut` of the whole one, so a file
knows nothing of it.
"""

# D width

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sh2.config import DecayWindow, FeedForward, ModelConfig
from sh2.errors import Sh2Error
from sh2.layers import GatedMLP
from sh2.mixers import Attention, HyenaLI
from sh2.mixers.hyena import Hyena, HyenaFir
from sh2.model import StripedHyena2


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor is shared: it is sections along a dimension, and every rank has its part of each of them."""

    dim: int
    sections: tuple[int, ...]  # their lengths

    def take(self, whole: Tensor, rank: int, ranks: int) -> Tensor:
        """A rank's part."""
        pieces = [whole.narrow(self.dim, each.start, each.stop - each.start) for each in self.ranges(rank, ranks)]
        return torch.cat(pieces, self.dim)

    def ranges(self, rank: int, ranks: int) -> list[slice]:
        """Where a rank's part is along the dimension, in each section."""
        starts = accumulate(self.sections, initial=0)
        return [
            slice(start + rank * length // ranks, start + (rank + 1) * length // ranks)
            for start, length in zip(starts, self.sections, strict=False)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole tensor of the parts of all ranks."""
        lengths = [length // len(parts) for length in self.sections]
        pieces = [part.split(lengths, self.dim) for part in parts]
        return torch.cat([piece for section in zip(*pieces, strict=True) for piece in section], self.dim)


def check_shares(config: ModelConfig, ranks: int) -> None:
    """Refuse a number of processes that would cut a filter group or a head.

    Raises:
        Sh2Error: names what cannot be shared.
    """
    shares = {
        "S": ("Hyena-SE filter groups", config.se_groups, "se_groups"),
        "M": ("Hyena-MR filter groups", config.mr_groups, "mr_groups"),
        "L": ("channels", config.width, "width"),
        "*": ("attention heads", config.num_kv_heads, "num_heads"),
    }
    twice = config.feed_forward is FeedForward.HYENA_SE
    feed = shares["S"] if twice else ("channels of the feed-forward layers", config.mlp_width, "mlp_width")
    for what, count, field in [*(shares[letter] for letter in dict.fromkeys(config.layout)), feed]:
        if count % ranks:
            raise Sh2Error(f"tp={ranks} would split one of the {count} {what}: they cannot be shared equally").hint(
                f"use a tp that divides {count}, or a model with another `{field}`"
            )


def cuts_of(model: StripedHyena2) -> dict[str, Cut]:
    """What is shared, by the names of tensors, of a model that is whole still; the rest is whole everywhere."""
    cuts: dict[str, Cut] = {}
    for prefix, module in model.named_modules():
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        rules = {name: cut for name, cut in _rules(module).items() if tensors.get(name) is not None}
        cuts |= {f"{prefix}.{name}": cut for name, cut in rules.items()}
    return cuts


def _rules(module: nn.Module) -> dict[str, Cut]:
    if isinstance(module, GatedMLP):
        inner, width = module.gate.weight.shape
        return {"gate.weight": Cut(0, (inner,)), "up.weight": Cut(0, (inner,)), "down.weight": Cut(1, (inner,))}
    if isinstance(module, Attention):
        width, kv_width = module.output.weight.shape[0], module.num_kv_heads * module.head_dim
        rows = Cut(0, (width, kv_width, kv_width))
        return {"input.weight": rows, "input.bias": rows, "output.weight": Cut(1, (width,))}
    if not isinstance(module, Hyena):
        return {}
    width = module.output.weight.shape[0]
    thirds, channels = Cut(0, (width, width, width)), Cut(0, (width,))
    rules = {"input.weight": thirds, "input.bias": thirds, "output.weight": Cut(1, (width,)), "skip": channels}
    rules |= {"featurizer_taps": thirds, "featurizer_bias": thirds}
    if isinstance(module, HyenaFir):
        return rules | {"taps": Cut(0, (module.taps.shape[0],))}
    return rules | {"log_poles": channels, "pole_shift": channels, "residues": channels}


def share_channels(model: StripedHyena2, group: dist.ProcessGroup) -> None:
    """Leave a model without values (on the meta device) this rank's share of every tensor, and sum where it must be.

    Raises:
        Sh2Error: filter groups, heads or channels cannot be shared equally.
    """
    rank, ranks = group.rank(), group.size()
    check_shares(model.config, ranks)
    for name, cut in cuts_of(model).items():
        prefix, _, last = name.rpartition(".")
        module = model.get_submodule(prefix)
        whole: Any = getattr(module, last)
        part = cut.take(whole.detach(), rank, ranks)
        setattr(module, last, nn.Parameter(part, whole.requires_grad) if isinstance(whole, nn.Parameter) else part)
    for module in list(model.modules()):
        match module:
            case Attention():
                module.num_heads //= ranks
                module.num_kv_heads //= ranks
                _sum_around(module, module.input, "output", group)
            case HyenaFir():
                module.window = module.window and share_window(module.window, module.taps.shape[0], rank, ranks)
                _sum_around(module, module.input, "output", group)
            case HyenaLI():
                _sum_around(module, module.input, "output", group)
            case GatedMLP():
                _sum_around(module, module, "down", group)


def share_window(window: DecayWindow, groups: int, rank: int, ranks: int) -> DecayWindow:
    """The decay window of a rank's filter groups: rates spaced evenly in the logarithm stay so in any stretch."""
    last = groups * ranks - 1
    ratio = window.alpha_last / window.alpha_first
    first, end = rank * groups, (rank + 1) * groups - 1
    if not last:
        return window
    return DecayWindow(
        alpha_first=window.alpha_first * ratio ** (first / last), alpha_last=window.alpha_first * ratio ** (end / last)
    )


def _sum_around(module: nn.Module, first: nn.Module, last: str, group: dist.ProcessGroup) -> None:
    """Sum what comes out of the projection `last` of a module, and the gradients of what goes into `first`."""
    enter = torch.compiler.disable(lambda x_BLD: _Enter.apply(group, x_BLD))
    first.register_forward_pre_hook(lambda _, inputs: (enter(inputs[0]),))
    setattr(module, last, _RowLinear(getattr(module, last), group))


class _RowLinear(nn.Linear):
    """A linear layer with some of its inputs; the others are in other processes."""

    def __init__(self, linear: nn.Linear, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.weight.shape
        self.weight, self.bias = linear.weight, linear.bias
        self._sum = torch.compiler.disable(lambda y_BLD: _Leave.apply(group, y_BLD))

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BLD = self._sum(F.linear(x_BLD, self.weight))
        return y_BLD if self.bias is None else y_BLD + self.bias.to(y_BLD.dtype)


class _Enter(torch.autograd.Function):
    """Nothing forward; backward, the sum over ranks: each has the gradient of its own channels."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, x_BLD: Tensor) -> Tensor:
        ctx.group = group
        return x_BLD.view_as(x_BLD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return None, total


class _Leave(torch.autograd.Function):
    """The sum over ranks forward; nothing backward: each rank's gradient is the whole one already."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, y_BLD: Tensor) -> Tensor:
        total = y_BLD.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]
