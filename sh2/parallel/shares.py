"""What each process holds of each tensor of a model, and the way from whole tensors to shares and back.

Over tp, the tensors of blocks are cut as `sh2.parallel.tensor` says. Over dp and cp, the matrices of blocks, all but a
thousandth of a model, are cut by rows once more, by FSDP: it gathers a block's when the block runs, in bf16 where that
is what is computed in. Everything else (filters, norms, biases, embeddings) is whole and float32 in each of these
processes, as its gradient is.

No process has more than one whole tensor at a time: a model is as large as its shares allow. Files hold whole tensors,
and so do not know how many processes wrote them.
"""

# S processes of dp and cp, T of tp; rank = s T + t

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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

    def take(self, name: str, whole: LazyTensor) -> Tensor:
        """This process's part of a whole tensor; no more is read of one that is stored."""
        share = self.share_of(name)
        if share.cut is None and not share.sharded:
            return whole.read()
        rows, columns = self._pieces(share)
        return _joined([_joined([whole.part((some, *few)) for few in columns], 1) for some in rows], 0)

    def whole(self, parts: Mapping[str, Tensor], group: dist.ProcessGroup) -> dict[str, LazyTensor]:
        """The whole tensors, each to be read once, in one process, while all of them are `sending` it their parts."""
        tags = {name: tag for tag, name in enumerate(sorted(parts))}
        lazy = {}
        for name, part in parts.items():
            share = self.share_of(name)
            read = partial(self._receive, share, part, group, tags[name])
            lazy[name] = LazyTensor(share.shape, part.dtype, read)
        return lazy

    @contextmanager
    def sending(self, parts: Mapping[str, Tensor], to: Mapping[str, int], group: dist.ProcessGroup) -> Iterator[None]:
        """Give every process what it needs of this one's parts, from where they are, whenever it reads that tensor.

        Nothing is copied and nobody waits for a turn; at the end, everybody has read all of them.

        Args:
            to: who reads each tensor.
        """
        works = [
            dist.isend(parts[name].contiguous(), dst=to[name], group=group, tag=tag)
            for tag, name in enumerate(sorted(parts))
            if to[name] != self._rank
            and self._rank in self._holders(self.share_of(name), to[name])
            and parts[name].numel()
        ]
        yield
        _wait(works)

    def _receive(self, share: Share, mine: Tensor, group: dist.ProcessGroup, tag: int) -> Tensor:
        parts, works = {self._rank: mine}, []
        for rank in self._holders(share, self._rank):
            if rank != self._rank:
                parts[rank] = mine.new_empty(self._shape(share, rank))
                if parts[rank].numel():
                    works.append(dist.irecv(parts[rank], src=rank, group=group, tag=tag))
        _wait(works)
        tp = self._parallel.tp
        channels = range(tp) if share.cut else [self._rank % tp]
        columns = [_joined([parts[rank] for rank in sorted(parts) if rank % tp == t], 0) for t in channels]
        return columns[0] if share.cut is None else share.cut.join(columns)

    def _holders(self, share: Share, reader: int) -> list[int]:
        """The processes whose parts make up the whole tensor, in order; of those that hold the same, the nearest."""
        tp = self._parallel.tp
        shards = range(self._parallel.shards) if share.sharded else [reader // tp]
        return [s * tp + t for s in shards for t in (range(tp) if share.cut else [reader % tp])]

    def _pieces(self, share: Share) -> tuple[list[slice], list[tuple[slice, ...]]]:
        """The rows and the columns of this process's part in the whole tensor."""
        tp, cut = self._parallel.tp, share.cut
        rows: list[slice] = [slice(0, share.shape[0])]
        columns: list[tuple[slice, ...]] = [()]
        if cut is not None and cut.dim == 0:
            rows = cut.ranges(self._rank % tp, tp)
        elif cut is not None:
            columns = [(some,) for some in cut.ranges(self._rank % tp, tp)]
        if share.sharded:
            count = sum(some.stop - some.start for some in rows)
            rows = _rows_of(rows, self._rows(count, self._rank // tp))
        return rows, columns

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


def _rows_of(ranges: Iterable[slice], wanted: slice) -> list[slice]:
    """Some of the rows that lie in ranges, if these are counted one behind the other."""
    found, before = [], 0
    for rows in ranges:
        shift = rows.start - before
        start, stop = max(wanted.start + shift, rows.start), min(wanted.stop + shift, rows.stop)
        if start < stop:
            found.append(slice(start, stop))
        before += rows.stop - rows.start
    return found or [slice(0, 0)]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _wait(works: Iterable[dist.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()


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
