"""The byte tokenizer of the published models: a token id is a byte.

Knows bytes and ids; knows nothing of what the bytes mean. Source: the published byte-level tokenizer (vocabulary 512,
ids 256 and above unused).
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

EOD = 0
"""End of document: stands between records."""
PAD = 1
"""Padding: never scored."""
VOCAB_SIZE = 512
"""Rows of the embedding; ids 256..511 stand for nothing."""

_LOWEST_PRINTED = 32


def encode(text: str | bytes) -> npt.NDArray[np.uint8]:
    """Token ids of a text, uint8 [bytes of the text in UTF-8]; case is kept and no special token is added."""
    data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    return np.frombuffer(data, dtype=np.uint8).copy()


def decode(ids: Iterable[int] | npt.NDArray[np.integer]) -> str:
    """Text of token ids, one character an id: ids below 32 (EOD, PAD) become a space, ids above 512 become 512."""
    return "".join(chr(max(_LOWEST_PRINTED, min(int(token), VOCAB_SIZE))) for token in ids)
