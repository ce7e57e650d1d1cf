"""The choices of what a backward pass makes again instead of keeping it. Knows nothing of torch."""

import math
from enum import StrEnum

PIECE = 32_768  # tokens of a half that looks at one token at a time which are made again at once
LOGITS_PIECE = 16_384  # tokens whose logits are there at once; those of more are always made again


class Recompute(StrEnum):
    """How much is made again in the backward pass, for the memory of keeping it."""

    NONE = "none"
    SELECTIVE = "selective"  # norms, gates and activations; what products and sequence operators make is kept
    FULL = "full"  # everything but the input of each half of a block
    NESTED = "nested"  # of a group of blocks only the first input is kept; the group is made again, then every half


def group_size(num_blocks: int) -> int:
    """Blocks of a group of `nested`: as many as keep the least, one tensor a group and two a block of the group."""
    return max(1, round(math.sqrt(num_blocks / 2)))
