"""Training in many processes: a `Team` whose members share windows, their length, channels and weights."""

# B batch, L length

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kernels import Backend
from sh2.checkpoint.tensors import LazyTensor
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.initialize import initialize
from sh2.model import StripedHyena2
from sh2.parallel.context import ContextParallel, parallelise
from sh2.parallel.mesh import Parallel
from sh2.parallel.processes import Processes
from sh2.parallel.sharding import Shards
from sh2.parallel.shares import local, shard_matrices, shares_of
from sh2.parallel.tensor import cuts_of, share_channels
from sh2.train.config import Precision, TrainConfig
from sh2.train.fp8 import use_fp8_linears
from sh2.train.loader import HostBatch
from sh2.train.team import Member, Parts, check_windows, own_windows

Value = TypeVar("Value")


class _Loose(NamedTuple):
    """Gradients that FSDP does not sum."""

    gradients: list[Tensor]
    totals: list[Tensor]  # over all processes that add to them
    copies: int  # processes that have the same ones


class Together(Member):
    """One of many processes."""

    def __init__(self, model: StripedHyena2, config: TrainConfig, processes: Processes) -> None:
        """Leave a model without values (on the meta device) this process's share, on its device; `put` gives values.

        Raises:
            Sh2Error: the processes cannot share the model or the windows, or the backend cannot run the model here.
        """
        parallel = Parallel.parse(config.parallel, processes.place.ranks)
        _check(config, parallel)
        _check_backend(model.config, config)
        model.use_backend(config.backend)
        if config.fp8_linears:
            use_fp8_linears(model, torch.device(config.device))
        super().__init__(processes, parallel)
        self.exchanges, self._shape, self._model = parallel.cp * parallel.tp > 1, parallel, model
        self._device = torch.device(config.device)
        self._mesh = parallel.mesh(self._device.type)
        self._shares = shares_of(model, cuts_of(model), parallel, processes.place.rank)
        self._context: ContextParallel | None = None
        if parallel.cp > 1:
            self._context = parallelise(
                model,
                self._mesh["cp"].get_group(),
                sharding=config.cp_sharding,
                convolution=config.cp_method,
                attention=config.cp_attention,
            )
        if parallel.tp > 1:
            share_channels(model, self._mesh["tp"].get_group())
        self._shards = shard_matrices(model, self._mesh, bf16=config.precision is Precision.BF16)
        model.to_empty(device=self._device)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Give the model the values that it has in one process.

        Each process makes some of the blocks, in the host's memory, as that one does; then they tell each other.
        """
        with torch.device("meta"):
            whole = StripedHyena2(self._model.config)
        parts: list[tuple[str, nn.Module]] = [(f"blocks.{layer}", block) for layer, block in enumerate(whole.blocks)]
        parts += [(name, part) for name, part in whole.named_children() if part is not whole.blocks]
        ranks, rank = self.processes, self._processes.place.rank
        for prefix, part in parts[rank::ranks]:
            initialize(part.to_empty(device="cpu"), self._model.config, seed, prefix=prefix)
        for number, (prefix, part) in enumerate(parts):
            for name, tensor in (*part.named_parameters(prefix), *part.named_buffers(prefix)):
                mine = number % ranks == rank
                told = tensor.to(self._device) if mine else torch.empty_like(tensor, device=self._device)
                dist.broadcast(told, src=number % ranks)
                self.put(name, told)
            part.to("meta")

    @torch.no_grad()
    def put(self, name: str, whole: Tensor) -> None:
        """Take this process's part of a tensor of the model."""
        prefix, _, last = name.rpartition(".")
        local(getattr(self._model.get_submodule(prefix), last)).copy_(self.take(name, LazyTensor.of(whole)))

    def part(self, batch: HostBatch, rows: slice) -> HostBatch:
        return own_windows(batch, rows, share=self._mesh.get_local_rank("dp"), among=self._shape.dp)

    def shard(self, whole_BL: Tensor) -> Tensor:
        return whole_BL if self._context is None else self._context.shard(whole_BL)

    def sum(self, numbers: Tensor) -> Tensor:
        total = numbers.clone()
        dist.all_reduce(total, group=self._shards)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        for loose in self._loose(model):
            torch._foreach_copy_(loose.gradients, loose.totals)

    def gradient_norm(self, model: nn.Module, *, summed: bool) -> Tensor:
        sharded = [local(gradient) for _, gradient in _gradients(model) if isinstance(gradient, DTensor)]
        parts = [(sharded, 1)]
        parts += [(loose.totals, loose.copies) for loose in self._loose(model, summed=summed)]
        squares = torch.zeros((), dtype=torch.float64, device=self._device)
        for gradients, copies in parts:
            if gradients:
                squares += torch.stack(torch._foreach_norm(gradients)).double().square().sum() / copies
        dist.all_reduce(squares)
        return squares.sqrt().float()

    def clip(self, model: nn.Module, norm: Tensor, most: float) -> None:
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for _, gradient in _gradients(model)], factor)

    def take(self, name: str, whole: LazyTensor) -> Tensor:
        return self._shares.take(name, whole)

    def whole(self, parts: Parts) -> Mapping[str, LazyTensor]:
        return self._shares.whole(parts, self._processes.files)

    def sending(self, parts: Parts, to: Mapping[str, int]) -> AbstractContextManager[None]:
        return self._shares.sending(parts, to, self._processes.files)

    def _loose(self, model: nn.Module, *, summed: bool = False) -> Iterator[_Loose]:
        """What FSDP does not sum: first what is cut over tp, then what is whole in every process.

        Args:
            summed: it has been summed by now.
        """
        tp, shards = self._shape.tp, self._shape.shards
        loose = [(name, gradient) for name, gradient in _gradients(model) if not isinstance(gradient, DTensor)]
        for cut in (True, False):
            mine = [gradient for name, gradient in loose if (self._shares.share_of(name).cut is not None) is cut]
            copies = shards if cut else shards * tp
            if not mine:
                continue
            if summed:
                yield _Loose(mine, mine, copies)
                continue
            total = torch.cat([gradient.flatten() for gradient in mine])
            if cut:
                dist.all_reduce(total, group=self._shards)
            else:  # alike over tp, up to rounding: the mean keeps the weights equal to the bit
                dist.all_reduce(total.div_(tp))
            pieces = total.split([gradient.numel() for gradient in mine])
            yield _Loose(mine, [piece.view_as(one) for piece, one in zip(pieces, mine, strict=True)], copies)


def _gradients(model: nn.Module) -> list[tuple[str, Tensor]]:
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return [(name, gradient) for name, gradient in named if gradient is not None]


def _check(config: TrainConfig, parallel: Parallel) -> None:
    if parallel.cp > 1:
        Shards(rank=0, ranks=parallel.cp, sharding=config.cp_sharding).check(config.length)
    check_windows(config, parallel)
    if parallel.cp > 1 and config.reset_documents:
        raise Sh2Error(f"cp={parallel.cp} cannot cut windows whose documents are reset").hint(
            "leave out `--reset-documents`, or share windows by dp"
        )
    if parallel.tp > 1 and config.fp8_linears:
        raise Sh2Error("FP8 linears are not cut over tp").hint(
            "share windows by dp and cp, or leave out `--fp8-linears`"
        )
    if parallel.tp > 1 and config.filter_statistics:
        raise Sh2Error("statistics of filters need whole filters, which tp cuts").hint(
            "leave out `--filter-statistics`"
        )


def _check_backend(model: ModelConfig, config: TrainConfig) -> None:
    """Try a block of each kind; a model in shares cannot be tried.

    Raises:
        Sh2Error: the kernels cannot run them here.
    """
    if config.backend == Backend.TRITON:
        few = replace(model, layout="".join(dict.fromkeys(model.layout)))
        StripedHyena2(few).to(config.device).use_backend(config.backend)
