"""What scoring sequences and scoring variants are both asked for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evo_cli.inference import KVDtype, kv_option
from evo_cli.outputs.shards import Shard

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """The model, where rows go, and which part of them.

    model, backend: names, as they were asked for. open: loads the model. kv_dtype: which changes its
    numbers. output: None is stdout.
    """

    model: str
    backend: str
    open: "Callable[[], Replicas]"
    output: Path | None
    shard: Shard | None
    overwrite: bool
    kv_dtype: KVDtype = KVDtype.AUTO

    def pick(self, items: Iterable[Item], unit: int) -> Iterator[Item]:
        """The items of the part that was asked for, in whole groups of `unit`."""
        return iter(items) if self.shard is None else self.shard.pick(items, unit)

    def options(self, unit: int) -> dict[str, Any]:
        """What a run's identity says of the part, and of the model's memory."""
        return {"shard": None if self.shard is None else self.shard.option(unit)} | kv_option(self.kv_dtype)
