"""Memory for keys and values that grows with the sequence: new ones are written behind the old, which stay in place."""

# B batch, S tokens, L new tokens, J key-value heads, C channels a head

import torch
from torch import Tensor

_STEP = 256  # tokens: a cache is a multiple of these long, and at least an eighth longer than what it must hold


class KVCache:
    """Keys and values of one line of continuation, in memory for more of them than there are.

    States are values: a state may be continued twice. So who continues a state writes behind it only where nobody has
    yet; otherwise the tokens seen are copied first.
    """

    def __init__(self, keys_BSJC: Tensor, values_BSJC: Tensor, capacity: int) -> None:
        self._keys, self._values = (
            torch.cat([seen, seen.new_empty(seen.shape[0], capacity - seen.shape[1], *seen.shape[2:])], dim=1)
            for seen in (keys_BSJC, values_BSJC)
        )
        self._used = keys_BSJC.shape[1]

    def takes(self, seen: int, keys_BLJC: Tensor) -> bool:
        """Whether the place behind the first `seen` tokens is nobody's, and these keys fit there as they are."""
        # what was made in inference mode can be written in inference mode only
        writable = torch.is_inference_mode_enabled() or not self._keys.is_inference()
        fits = seen + keys_BLJC.shape[1] <= self._keys.shape[1] and keys_BLJC.dtype is self._keys.dtype
        return self._used == seen and fits and writable

    def append(self, keys_BLJC: Tensor, values_BLJC: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values behind those there are; return all of them, without a copy."""
        start, stop = self._used, self._used + keys_BLJC.shape[1]
        self._keys[:, start:stop] = keys_BLJC
        self._values[:, start:stop] = values_BLJC
        self._used = stop
        return self._keys[:, :stop], self._values[:, :stop]


def extend(
    keys_BSJC: Tensor, values_BSJC: Tensor, new_keys_BLJC: Tensor, new_values_BLJC: Tensor, cache: KVCache | None
) -> tuple[Tensor, Tensor, KVCache | None]:
    """Put new keys and values behind those seen: in the cache while no gradients are kept, else by a copy.

    Returns:
        All keys and all values [B, S+L, J, C], and the cache that they lie in, if they do.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        keys, values = (torch.cat(pair, dim=1) for pair in ((keys_BSJC, new_keys_BLJC), (values_BSJC, new_values_BLJC)))
        return keys, values, None
    seen = keys_BSJC.shape[1]
    if cache is None or not cache.takes(seen, new_keys_BLJC):
        dtype = torch.promote_types(keys_BSJC.dtype, new_keys_BLJC.dtype)
        cache = KVCache(keys_BSJC.to(dtype), values_BSJC.to(dtype), capacity(seen + new_keys_BLJC.shape[1]))
    return *cache.append(new_keys_BLJC, new_values_BLJC), cache


def capacity(tokens: int) -> int:
    """Return the tokens to make room for, to hold so many."""
    return -(-(tokens + tokens // 8) // _STEP) * _STEP
