"""What travels between ranks. Every exchange is a linear map over the tensors of all ranks, and so is its transpose.

That is all that gradients need: the gradient of what came in goes out again through the transpose. An exchange is
started and finished, and what is computed in between hides it. Backward mirrors that: `finish` there starts the
gradients' way back, `start` waits for them, and autograd runs what was computed in between in between. Ranks do the
same exchanges in the same order, forward and backward: each of them builds the same graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sh2.parallel.sharding import Shards


@dataclass(slots=True)
class Flight:
    """Tensors on their way: not to be read before they have landed."""

    outputs: list[Tensor]
    works: list[dist.Work] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)  # kept alive until then

    def land(self) -> tuple[Tensor, ...]:
        """Wait; on a GPU its stream waits, not the host."""
        for work in self.works:
            work.wait()
        self.works.clear()
        self.sources.clear()
        return tuple(self.outputs)


class Exchange(ABC):
    """A linear map over the tensors of all ranks."""

    @abstractmethod
    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        """Send tensors off. Gradients are not recorded."""

    @abstractmethod
    def transpose(self) -> "Exchange":
        """The map that takes gradients of what came in to gradients of what went out."""


@dataclass(frozen=True, slots=True)
class Route(Exchange):
    """Sends every piece of a sequence to the place of another; places that nothing is sent to receive zeros.

    Tensors are [P, ...], a rank's pieces in order. All messages go out at once, as one batch.
    """

    group: dist.ProcessGroup
    shards: Shards
    target: Callable[[int], int | None]  # of each piece; no two have the same
    source: Callable[[int], int | None]  # its inverse

    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        flight = Flight([torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors])
        messages = [
            message
            for tensor, output in zip(tensors, flight.outputs, strict=True)
            if output.numel()
            for message in self._messages(tensor, output, flight.sources)
        ]
        if messages:
            flight.works += dist.batch_isend_irecv(messages)
        return flight

    def transpose(self) -> "Route":
        return Route(self.group, self.shards, self.source, self.target)

    def _messages(self, tensor: Tensor, output: Tensor, sources: list[Tensor]) -> list[dist.P2POp]:
        """What goes to other ranks, and comes from them; in the order of targets, which both sides know."""
        mine, messages = self.shards.mine, []
        for slot, piece in enumerate(mine):
            target = self.target(piece)
            if target in mine:
                output[mine.index(target)].copy_(tensor[slot])
            elif target is not None:
                sources.append(tensor[slot].contiguous())
                messages.append((target, self._message(dist.isend, sources[-1], target)))
            source = self.source(piece)
            if source is None:
                output[slot].zero_()
            elif source not in mine:
                messages.append((piece, self._message(dist.irecv, output[slot], source)))
        return [message for _, message in sorted(messages, key=itemgetter(0))]

    def _message(self, direction: Callable[..., Any], tensor: Tensor, piece: int) -> dist.P2POp:
        return dist.P2POp(direction, tensor, group=self.group, group_peer=self.shards.owner(piece))


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that share sequences, and what each of them holds."""

    group: dist.ProcessGroup
    shards: Shards

    @property
    def to_next(self) -> Route:
        """The route from every piece to the next one in the sequence; the first receives zeros."""
        last = self.shards.count - 1
        return Route(
            self.group,
            self.shards,
            target=lambda piece: piece + 1 if piece < last else None,
            source=lambda piece: piece - 1 if piece > 0 else None,
        )

    def across(self, distance: int) -> Route:
        """The route between pieces whose numbers differ in one bit; both ways."""
        return Route(self.group, self.shards, target=distance.__xor__, source=distance.__xor__)


@dataclass(frozen=True, slots=True)
class Turn(Exchange):
    """Hands what every rank holds to the rank `by` further on, around."""

    group: dist.ProcessGroup
    by: int = 1

    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        rank, ranks = self.group.rank(), self.group.size()
        sources = [tensor.contiguous() for tensor in tensors]
        flight = Flight([torch.empty_like(source) for source in sources], sources=sources)
        to, frm = (rank + self.by) % ranks, (rank - self.by) % ranks
        flight.works += dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, source, group=self.group, group_peer=to) for source in sources]
            + [dist.P2POp(dist.irecv, output, group=self.group, group_peer=frm) for output in flight.outputs]
        )
        return flight

    def transpose(self) -> "Turn":
        return Turn(self.group, -self.by)


@dataclass(frozen=True, slots=True)
class AllToAll(Exchange):
    """Sends part j of tensors [N, ...] to rank j, where it becomes part i: its own transpose."""

    group: dist.ProcessGroup

    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        sources = [tensor.contiguous() for tensor in tensors]
        flight = Flight([torch.empty_like(source) for source in sources], sources=sources)
        for output, source in zip(flight.outputs, sources, strict=True):
            flight.works.append(dist.all_to_all_single(output, source, group=self.group, async_op=True))
        return flight

    def transpose(self) -> "AllToAll":
        return self


@dataclass(frozen=True, slots=True)
class AllGather(Exchange):
    """Gives every rank the tensors of all, side by side: [...] becomes [N, ...]."""

    group: dist.ProcessGroup

    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        sources = [tensor.contiguous() for tensor in tensors]
        N = self.group.size()
        flight = Flight([source.new_empty(N, *source.shape) for source in sources], sources=sources)
        for output, source in zip(flight.outputs, sources, strict=True):
            flight.works.append(dist.all_gather(list(output), source, group=self.group, async_op=True))
        return flight

    def transpose(self) -> "ReduceScatter":
        return ReduceScatter(self.group)


@dataclass(frozen=True, slots=True)
class ReduceScatter(Exchange):
    """Sums part i of the tensors [N, ...] of all ranks into rank i's [...]."""

    group: dist.ProcessGroup

    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        sources = [tensor.contiguous() for tensor in tensors]
        flight = Flight([source.new_empty(source.shape[1:]) for source in sources], sources=sources)
        for output, source in zip(flight.outputs, sources, strict=True):
            flight.works.append(dist.reduce_scatter(output, list(source), group=self.group, async_op=True))
        return flight

    def transpose(self) -> AllGather:
        return AllGather(self.group)


class Journey:
    """One use of an exchange, there and, in backward, back."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.there: Flight | None = None
        self.back: Flight | None = None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: Journey, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.journey = journey
        journey.there = journey.exchange.begin(tensors)
        return tuple(journey.there.outputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        landed = ctx.journey.back.land()
        ctx.journey.back = None
        return None, *landed


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: Journey, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.journey = journey
        assert journey.there is not None
        journey.there.land()
        journey.there = None
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        journey = ctx.journey
        journey.back = journey.exchange.transpose().begin(grads)
        # what `_Start` gets is not what it returns: that comes from other ranks
        return None, *grads


@dataclass(frozen=True, slots=True)
class Started:
    """An exchange that is under way."""

    journey: Journey
    outputs: tuple[Tensor, ...]

    def finish(self) -> tuple[Tensor, ...]:
        """Wait for what comes in; in backward, send its gradients off."""
        return _Finish.apply(self.journey, *self.outputs)


def start(exchange: Exchange, *tensors: Tensor) -> Started:
    """Begin an exchange; in backward, wait for the gradients of what was sent."""
    journey = Journey(exchange)
    return Started(journey, _Start.apply(journey, *tensors))


def exchanged(exchange: Exchange, tensor: Tensor) -> Tensor:
    """Run an exchange of one tensor with nothing to hide it behind."""
    (received,) = start(exchange, tensor).finish()
    return received
