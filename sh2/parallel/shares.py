"""What each process holds of each tensor of a model, and the way from whole tensors to shares and back.

Over tp, the tensors of blocks are cut as `sh2.parallel.tensor` says. Over dp and cp, the matrices of blocks, all but a
thousandth of a model, are cut by rows once more, by FSDP: it gathers a block's when the block runs, in bf16 where that
is what is computed in. Everything else (filters, norms, biases, embeddings) is whole and float32 in each of these
processes, as its gradient is.

A whole tensor is on one process at a time, never all of them: a model is as large as its shares allow. Files hold whole
tensors, and so do not know how many processes wrote them.
"""

# S processes of dp and cp, T of tp; rank = s T + t

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from sh2.checkpoint.tensors import LazyTensor
from sh2.model import StripedHyena2
from sh2.parallel.mesh import Parallel
from sh2.parallel.tensor import Cut


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True, slots=True)
class Share:
    """How one tensor is held."""

    shape: tuple[int, ...]  # whole
    dtype: torch.dtype
    cut: Cut | None  # over tp
    sharded: bool  # by rows, over dp and cp


class Shares:
    """How every tensor of a model is held by the processes; seen from one of them."""

    def __init__(self, parallel: Parallel, rank: int, tensors: Mapping[str, Share]) -> None:
        self._parallel = parallel
        self._rank = rank
        self._tensors = dict(tensors)

    def share_of(self, name: str) -> Share:
        """How a tensor is held; an optimizer's is held as the parameter, `PARAMETER/exp_avg`, but for its steps."""
        parameter, _, field = name.rpartition("/")
        if field == "step":
            return Share((), torch.float32, None, False)
        return self._tensors[parameter or name]

    def take(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor."""
        share, tp = self.share_of(name), self._parallel.tp
        part = whole if share.cut is None else share.cut.take(whole, self._rank % tp, tp)
        return part[self._rows(len(part), self._rank // tp)] if share.sharded else part

    def send(self, parts: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
        """Give the first process what it needs of this one's parts; returns when it has all of them."""
        works = [
            dist.isend(parts[name].contiguous(), dst=0, group=group, tag=tag)
            for tag, name in enumerate(sorted(parts))
            if self._rank in self._holders(self.share_of(name)) and parts[name].numel()
        ]
        for work in works:
            if work is not None:
                work.wait()

    def whole(self, parts: Mapping[str, Tensor], group: dist.ProcessGroup) -> dict[str, LazyTensor]:
        """The whole tensors, in the first process, while the others `send`: each is received when it is read, once."""
        tags = {name: tag for tag, name in enumerate(sorted(parts))}
        lazy = {}
        for name, part in parts.items():
            share = self.share_of(name)
            read = partial(self._receive, share, part, group, tags[name])
            lazy[name] = LazyTensor(share.shape, part.dtype, read)
        return lazy

    def _receive(self, share: Share, mine: Tensor, group: dist.ProcessGroup, tag: int) -> Tensor:
        parts = {0: mine}
        works = []
        for rank in self._holders(share)[1:]:
            parts[rank] = mine.new_empty(self._shape(share, rank))
            if parts[rank].numel():
                works.append(dist.irecv(parts[rank], src=rank, group=group, tag=tag))
        for work in works:
            if work is not None:
                work.wait()
        tp = self._parallel.tp
        columns = [[parts[rank] for rank in sorted(parts) if rank % tp == t] for t in range(tp if share.cut else 1)]
        joined = [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in columns]
        return joined[0] if share.cut is None else share.cut.join(joined)

    def _holders(self, share: Share) -> list[int]:
        """The processes whose parts make up the whole tensor."""
        tp = self._parallel.tp
        shards = range(self._parallel.shards if share.sharded else 1)
        return [s * tp + t for s in shards for t in range(tp if share.cut else 1)]

    def _shape(self, share: Share, rank: int) -> tuple[int, ...]:
        shape = list(share.shape)
        if share.cut is not None:
            shape[share.cut.dim] //= self._parallel.tp
        if share.sharded:
            rows = self._rows(shape[0], rank // self._parallel.tp)
            shape[0] = rows.stop - rows.start
        return tuple(shape)

    def _rows(self, rows: int, shard: int) -> slice:
        """As FSDP cuts: as many as it takes for each, fewer or none for the last ones."""
        each = -(-rows // self._parallel.shards)
        return slice(min(shard * each, rows), min((shard + 1) * each, rows))


def shares_of(model: StripedHyena2, cuts: Mapping[str, Cut], parallel: Parallel, rank: int) -> Shares:
    """How the tensors of a model that is whole still will be held."""
    matrices = {name for name, _ in matrices_of(model)}
    tensors = {
        name: Share(tuple(tensor.shape), tensor.dtype, cuts.get(name) if parallel.tp > 1 else None, name in matrices)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    return Shares(parallel, rank, tensors)


def matrices_of(model: StripedHyena2) -> list[tuple[str, nn.Parameter]]:
    """The parameters that FSDP shards: weights of the linear layers of blocks."""
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name.startswith("blocks.") and name.endswith(".weight")
    ]


def shard_matrices(model: StripedHyena2, mesh: DeviceMesh, *, bf16: bool) -> dist.ProcessGroup:
    """Leave a model without values its rows of the matrices, and gather those of a block whenever it runs.

    Gradients are summed over processes, in float32, not averaged.

    Returns:
        the processes that share the rows: those of dp and cp.
    """
    mesh = mesh["dp", "cp"]._flatten("shards")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    matrices = {parameter for _, parameter in matrices_of(model)}
    others = {parameter for parameter in model.parameters() if parameter not in matrices}
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=others, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, ignored_params={*model.parameters()})
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for method in ("hidden", "whole"):
        register_fsdp_forward_method(model, method)
    return mesh.get_group()
