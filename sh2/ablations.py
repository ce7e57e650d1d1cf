"""The paper's ablations of a shape, each at the number of parameters of the shape it varies.

A layout exchanges the letters of the hyena blocks and leaves attention where it is; what that or other filter groups
add or save, the feed-forward layers give or take. Hyena-SE in place of these saves so much that the model becomes
deeper, and narrower or wider where that alone does not meet the number. Knows configurations only.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from itertools import cycle, islice
from math import lcm
from types import MappingProxyType

from sh2.config import FeedForward, ModelConfig
from sh2.errors import Sh2Error
from sh2.planning.accounting import count_parameters

_MLP_STEP = 8  # what matrix products take in bf16
_HEAD_STEPS = (8, 2)  # channels by which a head may grow: what attention is fast at, and what rotation needs
_CLOSE = 0.01  # shapes whose parameters differ by less are as good as any


def _match(changed: ModelConfig, config: ModelConfig) -> ModelConfig:
    """Give the feed-forward layers of a changed shape what brings its parameters nearest to those of another."""
    step = 3 * config.width * config.num_layers * _MLP_STEP
    steps = round((count_parameters(config) - count_parameters(changed)) / step)
    return replace(changed, mlp_width=changed.mlp_width + steps * _MLP_STEP)


def _layout(config: ModelConfig, letters: str) -> ModelConfig:
    """Exchange the letters S, M, L and * of a layout for others."""
    return _match(replace(config, layout=config.layout.translate(str.maketrans("SML*", letters))), config)


def _hyena_se_feed_forward(config: ModelConfig) -> ModelConfig:
    """Hyena-SE after every mixer: the layout repeats until the parameters are there, at the nearest width that can."""
    wanted = count_parameters(config)
    misses: dict[ModelConfig, float] = {}
    for channels in _HEAD_STEPS:
        step = lcm(channels * config.num_heads, config.width // config.se_groups, config.width // config.mr_groups)
        away = (sign * number * step for number in range(config.width // (2 * step) + 1) for sign in (1, -1))
        for shape in (_repeated(config, config.width + more, layers) for more in away for layers in _depths(config)):
            misses[shape] = abs(count_parameters(shape) / wanted - 1)
            if misses[shape] < _CLOSE:
                return shape
    return min(misses, key=misses.__getitem__)


def _depths(config: ModelConfig) -> range:
    return range(config.num_layers, 3 * config.num_layers)


def _repeated(config: ModelConfig, width: int, layers: int) -> ModelConfig:
    return replace(
        config,
        width=width,
        layout="".join(islice(cycle(config.layout), layers)),
        se_groups=width * config.se_groups // config.width,
        mr_groups=width * config.mr_groups // config.width,
        feed_forward=FeedForward.HYENA_SE,
    )


def _groups(config: ModelConfig, channels: int) -> ModelConfig:
    """Filters that another number of channels share."""
    if config.width % channels:
        raise Sh2Error(f"the width {config.width} has no filter groups of {channels} channels")
    groups = config.width // channels
    return _match(replace(config, se_groups=groups, mr_groups=groups), config)


ABLATIONS: Mapping[str, Callable[[ModelConfig], ModelConfig]] = MappingProxyType(
    {
        "se-mr-li": partial(_layout, letters="SML*"),
        "se-se-li": partial(_layout, letters="SSL*"),
        "li-li-li": partial(_layout, letters="LLL*"),
        "all-se": partial(_layout, letters="SSS*"),
        "all-mr": partial(_layout, letters="MMM*"),
        "attention": partial(_layout, letters="****"),
        "se-feed-forward": _hyena_se_feed_forward,
        "groups-of-1": partial(_groups, channels=1),
        "groups-of-4": partial(_groups, channels=4),
        "groups-of-64": partial(_groups, channels=64),
    }
)
"""Ablations by name: layouts as the paper writes them, what follows the mixers, and channels a filter group."""


def ablate(config: ModelConfig, name: str) -> ModelConfig:
    """Return the ablation called `name` of a shape, at its number of parameters, within 1% where a shape allows that.

    Raises:
        Sh2Error: there is no such ablation, or the shape has none.
    """
    if name not in ABLATIONS:
        error = Sh2Error(f"unknown ablation `{name}`")
        if close := get_close_matches(name, ABLATIONS, n=1):
            raise error.hint(f"did you mean `{close[0]}`?")
        raise error.hint(f"known ablations: {', '.join(ABLATIONS)}")
    return ABLATIONS[name](config)
