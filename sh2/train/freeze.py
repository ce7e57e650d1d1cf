"""What of a model is not trained. Knows the names of the model's parameters, not its layers."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

from torch import nn

from sh2.errors import Sh2Error
from sh2.train.optimizer import Role, role_of

_FILTERS = {Role.TAPS, Role.FEATURIZER_TAPS, Role.SKIP, Role.RESIDUES, Role.POLE_SHIFT}

PARTS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "embedding": lambda name: "embedding.weight" in name,
        "mixers": lambda name: ".mixer." in name,
        "feed_forward": lambda name: ".feed_forward." in name,
        "filters": lambda name: role_of(name) in _FILTERS,
        "norms": lambda name: role_of(name) is Role.NORM,
    }
)
"""Parts of a model that have a name, and which parameters they hold: embeddings, tied or not; mixers and what follows
them in a block, without the norms; the taps, modes and skips of all filters; all norms."""


def freeze(model: nn.Module, choices: Sequence[str]) -> None:
    """Keep parameters as they are: they get no gradient and no state in the optimizer.

    Args:
        choices: names of `PARTS`, or patterns such as `blocks.0.*` that are compared with whole names.

    Raises:
        Sh2Error: a choice is no part and matches no name, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for choice in choices:
        chosen = PARTS.get(choice, lambda name, pattern=choice: fnmatchcase(name, pattern))
        names = [name for name in parameters if chosen(name)]
        if not names:
            raise Sh2Error(f"nothing of the model is called `{choice}`, so it cannot be frozen").hint(
                f"use {', '.join(PARTS)}, or a pattern such as `blocks.0.*`; a parameter is called `{[*parameters][1]}`"
            )
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise Sh2Error(f"all of the model is frozen by {', '.join(choices)}: nothing is left to train").hint(
            "leave out one `--freeze`"
        )
