"""A part of a job array's work: every n-th group of rows, so that the parts put together again are in order.

Knows counting; knows nothing of what is counted.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self, TypeVar

import typer

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` (from 1) of `count`: of groups of `unit` items, those whose number is `number` modulo `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `i/n`.

        Raises:
            typer.BadParameter: it is nothing of the kind.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise typer.BadParameter(f"must be i/n with 1 <= i <= n, such as 3/10, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def pick(self, items: Iterable[Item], unit: int) -> Iterator[Item]:
        """The items of this part."""
        stream = iter(items)
        while True:
            for _ in islice(stream, (self.number - 1) * unit):
                pass
            group = list(islice(stream, unit))
            if not group:
                return
            yield from group
            for _ in islice(stream, (self.count - self.number) * unit):
                pass

    def option(self, unit: int) -> dict[str, Any]:
        """What a run's identity says of it."""
        return {"number": self.number, "count": self.count, "unit": unit}


def interleave(parts: list[Iterator[Item]], unit: int) -> Iterator[Item]:
    """The items of all parts of a whole, in order of their number, as they were before `pick`."""
    while True:
        found = False
        for part in parts:
            for item in islice(part, unit):
                found = True
                yield item
        if not found:
            return
