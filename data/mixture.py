"""Several streams of windows as one: each window comes from one of them, in exact proportions, by its number alone.

The stream is cut into blocks. Of any number of blocks a source has as many windows as its share says, to the next whole
number; where they stand within a block is a hash of the seed. So a source's own windows come in their order, none is
left out, and `Mixture.batch` needs no state: a run resumes at any window.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil, isfinite

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.permutation import mix, mix_range
from data.windows import Batch, Windows

_BLOCK = 1024
_BLOCKS_KEPT = 2
_SMALLEST_SHARE = 1e-6  # a block, whose layout is held, has two windows or more of each source
_MIXTURE = 4  # sets these hashes apart from those of data/windows.py


class Mixture:
    """Windows of several sources, mixed by weights; `len` is the number of windows in all of them, each taken once.

    shares: the weights over their sum, a share of the windows. Raises DataError for weights that cannot be shares.
    """

    def __init__(self, sources: Sequence[Windows], weights: Sequence[float], *, seed: int = 0) -> None:
        if len(sources) != len(weights) or not sources:
            raise DataError(f"a mixture needs a weight for each source, not {len(weights)} for {len(sources)}")
        for weight in weights:
            if not (isfinite(weight) and weight > 0):
                raise DataError(f"the weight of a source must be a number above 0, got {weight}")
        exact = [Fraction(weight) for weight in weights]
        fractions = [weight / sum(exact) for weight in exact]
        self.shares = tuple(float(fraction) for fraction in fractions)
        self._sources = list(sources)
        self._seed = seed
        if min(fractions) < _SMALLEST_SHARE:
            raise DataError(
                f"a mixture's smallest share is {float(min(fractions)):.2g}; it must be at least {_SMALLEST_SHARE:g}"
            ).hint("give the stores weights that are less far apart")
        # with two windows or more of each source in a block, rounding never takes one back
        self._block = max(_BLOCK, ceil(2 / min(fractions)))
        self._bounds = list(accumulate(fractions))
        self._laid_out: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def batch(self, first: int, count: int) -> Batch:
        """Windows number first .. first + count - 1 of the endless stream, as `Windows.batch` returns them."""
        if first < 0 or count < 1:
            raise DataError(f"a batch needs first >= 0 and count >= 1, got first {first} and count {count}")
        origins = np.array([self.origin(number) for number in range(first, first + count)])
        rows, batches = [], []
        for source in np.unique(origins[:, 0]):
            here = np.flatnonzero(origins[:, 0] == source)
            rows.append(here)  # a source's windows follow one another
            batches.append(self._sources[source].batch(int(origins[here[0], 1]), len(here)))
        order = np.argsort(np.concatenate(rows))
        return Batch(
            tokens=np.concatenate([batch.tokens for batch in batches])[order],
            weights=np.concatenate([batch.weights for batch in batches])[order],
            document_starts=np.concatenate([batch.document_starts for batch in batches])[order],
        )

    def origin(self, number: int) -> tuple[int, int]:
        """Which source window `number` comes from, and its number there."""
        block, place = divmod(number, self._block)
        sources, windows = self._block_of(block)
        return int(sources[place]), int(windows[place])

    def _block_of(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = self._laid_out.get(block)
        if found is None:
            while len(self._laid_out) >= _BLOCKS_KEPT:
                self._laid_out.pop(min(self._laid_out))
            found = self._laid_out[block] = self._lay_out(block)
        return found

    def _lay_out(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every place of a block, the source [block] and the number of the window there [block]."""
        begin, end = self._counts(block), self._counts(block + 1)
        taken = [last - first for first, last in zip(begin, end, strict=True)]
        order = np.argsort(mix_range(mix(self._seed, _MIXTURE, block), self._block), kind="stable")
        sources = np.empty(self._block, dtype=np.int64)
        sources[order] = np.repeat(np.arange(len(taken)), taken)
        windows = np.empty(self._block, dtype=np.int64)
        for source, first in enumerate(begin):
            here = sources == source
            windows[here] = first + np.arange(int(here.sum()))
        return sources, windows

    def _counts(self, blocks: int) -> list[int]:
        """Windows of each source in the first `blocks` blocks: the steps of a staircase, so that they add up."""
        steps = [0, *(int(blocks * self._block * bound) for bound in self._bounds)]
        return [high - low for low, high in pairwise(steps)]
