"""Exchanges hide behind what is computed between their start and their finish, forward and backward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sh2.parallel.exchange import Exchange, Flight, start


class Echo(Exchange):
    """One rank's share of a map that doubles, and writes down what happens when."""

    def __init__(self, diary: list[str], name: str = "there") -> None:
        self.diary = diary
        self.name = name

    def begin(self, tensors: Sequence[Tensor]) -> Flight:
        self.diary.append(f"begin {self.name}")
        return Flight([torch.full_like(tensor, torch.nan) for tensor in tensors], [Landing(self, tensors)])  # type: ignore[list-item]

    def transpose(self) -> "Echo":
        return Echo(self.diary, "back")


class Landing:
    """What `Flight.land` waits for: until then the outputs hold nothing."""

    def __init__(self, exchange: Echo, sources: Sequence[Tensor]) -> None:
        self.exchange = exchange
        self.sources = sources

    def wait(self) -> None:
        self.exchange.diary.append(f"land {self.exchange.name}")


class Local(torch.autograd.Function):
    """What is computed meanwhile."""

    @staticmethod
    def forward(ctx: Any, diary: list[str], x: Tensor) -> Tensor:
        ctx.diary = diary
        diary.append("compute")
        return x * 3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        ctx.diary.append("compute backward")
        return None, grads[0] * 3


def test_what_is_computed_in_between_is_in_between_in_backward_too() -> None:
    diary: list[str] = []
    x = torch.ones(3, requires_grad=True)
    sent = start(Echo(diary), x * 1)
    y = Local.apply(diary, x)
    (received,) = sent.finish()
    (received.nan_to_num() + y).sum().backward()
    assert diary == [
        "begin there",
        "compute",
        "land there",
        "begin back",
        "compute backward",
        "land back",
    ]
