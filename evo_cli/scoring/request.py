"""What scoring sequences and scoring variants are both asked for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evo_cli.outputs.shards import Shard

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """The model, where rows go, and which part of them.

    model, backend: names, as they were asked for. open: loads the model. output: None is stdout.
    """

    model: str
    backend: str
    open: "Callable[[], Replicas]"
    output: Path | None
    shard: Shard | None
    overwrite: bool

    def pick(self, items: Iterable[Item], unit: int) -> Iterator[Item]:
        """The items of the part that was asked for, in whole groups of `unit`."""
        return iter(items) if self.shard is None else self.shard.pick(items, unit)

    def options(self, unit: int) -> dict[str, Any]:
        """What a run's identity says of the part."""
        return {"shard": None if self.shard is None else self.shard.option(unit)}
