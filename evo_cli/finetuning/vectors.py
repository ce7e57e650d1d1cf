"""Pooled embeddings of sequences, made on as many devices as there are copies of the model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas
    from sh2.model import StripedHyena2

Item = TypeVar("Item")

_BLOCK_BATCHES = 4  # batches' worth of bases that are one job


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """Of which layer, pooled how, and how many tokens of it at once."""

    layer: str
    pooling: str
    max_tokens: int

    def of(
        self, replicas: "Replicas", jobs: Iterable[list[bytes]], progress: Callable[[int], None]
    ) -> Iterator[NDArray[np.float32]]:
        """Embed the texts of every job, none of them empty: rows [some, D], job by job."""
        return replicas.map(partial(_embed, self), jobs, progress)

    def together(
        self, replicas: "Replicas", texts: Iterable[bytes], progress: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """Embed texts, none of them empty: [N, D]."""
        jobs = blocks(texts, len, self.block_bases)
        return np.concatenate([np.zeros((0, replicas.config.width), np.float32), *self.of(replicas, jobs, progress)])

    @property
    def block_bases(self) -> int:
        """Bases that make a job."""
        return _BLOCK_BATCHES * self.max_tokens


def blocks(items: Iterable[Item], size: Callable[[Item], int], enough: int) -> Iterator[list[Item]]:
    """Items in their order, cut behind the one with which their sizes, and one each, come to `enough`."""
    block: list[Item] = []
    filled = 0
    for item in items:
        block.append(item)
        filled += size(item) + 1
        if filled >= enough:
            yield block
            block, filled = [], 0
    if block:
        yield block


def _embed(
    vectors: Vectors, model: "StripedHyena2", texts: list[bytes], progress: Callable[[int], None]
) -> NDArray[np.float32]:
    from sh2.reading.embedding import embed

    found = embed(
        model, texts, [vectors.layer], pooling=vectors.pooling, max_tokens=vectors.max_tokens, progress=progress
    )
    return np.concatenate([np.zeros((0, model.config.width), np.float32), *found])
