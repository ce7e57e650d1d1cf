"""A longer context for a trained model: other rotary positions, and nothing else. Knows configurations only.

Filters need no change: their taps and poles are counted in tokens, and so is Hyena-MR's decay window.
"""

from dataclasses import replace
from enum import StrEnum
from math import log2

from sh2.config import ModelConfig, RotaryFrequencies
from sh2.errors import Sh2Error


class Extension(StrEnum):
    """How attention is told of positions that it has not seen (Evo 2's recipe, stages from 8,192 up)."""

    INTERPOLATION = "interpolation"  # positions are divided by how many times longer the context is
    BASE = "base"  # the base is multiplied by 10 each time the context doubles
    BOTH = "both"


def extend(config: ModelConfig, context: int, by: Extension) -> ModelConfig:
    """Return the configuration for a longer context; extending in stages gives what one step gives.

    A new base replaces rotary frequencies that a file has of its own, for they are those of the old one.

    Args:
        context: in tokens, at least `config.context`; at the same length nothing changes.

    Raises:
        Sh2Error: the context is shorter than the model's own.
    """
    if context < config.context:
        raise Sh2Error(f"a context of {context:,} extends nothing: the model's own is {config.context:,}").hint(
            f"give a `--length` above {config.context}, or leave out `--extend-by`"
        )
    factor = context / config.context
    if factor == 1:
        return config
    changes: dict[str, object] = {"context": context}
    if by is not Extension.BASE:
        changes["rotary_interpolation"] = config.rotary_interpolation * factor
    if by is not Extension.INTERPOLATION:
        changes["rotary_base"] = config.rotary_base * 10 ** log2(factor)
        changes["rotary_frequencies"] = RotaryFrequencies.BASE
    return replace(config, **changes)  # type: ignore[arg-type]
