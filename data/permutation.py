"""Pseudo-random choices as pure functions of numbers: nothing is drawn, so nothing has to be saved to resume.

Knows integers only. Mixing is splitmix64 (Steele, Lea and Flood 2014), spelled out here so that no library's release
can change the order of somebody's training data. A permutation is a Feistel network over pairs of digits, walked until
it lands inside (Black and Rogaway 2002): constant memory at any size.
"""

import math

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_ROUNDS = 6


def mix(*numbers: int) -> int:
    """A 64-bit hash of integers (each taken modulo 2 ** 64) in their order."""
    state = 0
    for number in numbers:
        z = (state + (number & _MASK) + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * _MULTIPLIER_1) & _MASK
        z = ((z ^ (z >> 27)) * _MULTIPLIER_2) & _MASK
        state = z ^ (z >> 31)
    return state


def mix_range(key: int, count: int) -> NDArray[np.uint64]:
    """uint64 [count]: mix(key, i) for i from 0 to count - 1."""
    z = np.arange(count, dtype=np.uint64) + np.uint64((mix(key) + _GOLDEN) & _MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return z ^ (z >> np.uint64(31))


class Permutation:
    """A pseudo-random permutation of range(size), chosen by `key`; a value takes constant time and memory."""

    def __init__(self, *, size: int, key: int) -> None:
        self.size = size
        self._radix = np.uint64(max(2, math.isqrt(max(size - 1, 0)) + 1))
        self._keys = [np.uint64(mix(key, step)) for step in range(_ROUNDS)]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where indices [N] go. Raises IndexError outside range(size)."""
        if not ((indices >= 0) & (indices < self.size)).all():
            raise IndexError(indices)
        images = self._walk(indices.astype(np.uint64))
        while len(outside := np.flatnonzero(images >= self.size)):
            images[outside] = self._walk(images[outside])
        return images.astype(np.int64)

    def _walk(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = np.divmod(places, self._radix)
        for key in self._keys:
            left, right = right, (left + ((right ^ key) * np.uint64(_MULTIPLIER_1) >> np.uint64(32))) % self._radix
        return left * self._radix + right
