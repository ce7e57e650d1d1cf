"""Named model shapes: the seven published Evo 2 models, ours from 1M to 1B, and Transformers of the same sizes."""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from sh2.config import DEFAULT_WINDOW, Activation, ModelConfig, RotaryFrequencies
from sh2.errors import Sh2Error

_LAYOUT_7B = "SML*" + "SMLSML*" * 4
_LAYOUT_40B = "SML*" + "SMLSML*" * 4 + "SML*" + "SMLSML*" * 2


def _published(
    *,
    width: int,
    layout: str,
    mlp_width: int,
    context: int,
    base: float = 1e4,
    interpolation: float = 1.0,
    group: int = 16,
) -> ModelConfig:
    """A shape of Evo 2: bilinear after block 0, rotary frequencies from the file, trained with FP8 projections."""
    return ModelConfig(
        width=width,
        layout=layout,
        num_heads=width // 128,
        mlp_width=mlp_width,
        se_groups=width // group,
        mr_groups=width // group,
        context=context,
        first_activation=Activation.GELU,
        activation=Activation.IDENTITY,
        rotary_base=base,
        rotary_interpolation=interpolation,
        rotary_frequencies=RotaryFrequencies.STORED,
        fp8_input_projections=True,
    )


def _trainable(*, width: int, layout: str, num_heads: int, mlp_width: int) -> ModelConfig:
    """A shape of ours: GELU everywhere, 16 channels a filter group, a decay window that is really active."""
    return ModelConfig(
        width=width,
        layout=layout,
        num_heads=num_heads,
        mlp_width=mlp_width,
        se_groups=width // 16,
        mr_groups=width // 16,
        mr_window=DEFAULT_WINDOW,
    )


PUBLISHED: dict[str, ModelConfig] = {
    "evo2_1b_base": _published(width=1920, layout="SML*" + "SMLSML*" * 3, mlp_width=5120, context=8192, group=15),
    "evo2_7b_base": replace(
        _published(width=4096, layout=_LAYOUT_7B, mlp_width=11008, context=8192), fp8_input_projections=False
    ),
    "evo2_7b_262k": replace(
        _published(width=4096, layout=_LAYOUT_7B, mlp_width=11008, context=262_144, interpolation=32.0),
        fp8_input_projections=False,
    ),
    "evo2_7b": replace(
        _published(width=4096, layout=_LAYOUT_7B, mlp_width=11264, context=1_048_576, interpolation=128.0),
        fp8_input_projections=False,
    ),
    "evo2_20b": _published(
        width=8192,
        layout="SML*" + "SMLSML*" * 2 + "SMLSML",
        mlp_width=22528,
        context=1_048_576,
        base=1e6,
        interpolation=128.0,
    ),
    "evo2_40b_base": _published(width=8192, layout=_LAYOUT_40B, mlp_width=21888, context=8192, base=1e6),
    "evo2_40b": _published(
        width=8192, layout=_LAYOUT_40B, mlp_width=22528, context=1_048_576, base=1e6, interpolation=128.0
    ),
}

TRAINABLE: dict[str, ModelConfig] = {
    "debug": _trainable(width=128, layout="SML*", num_heads=4, mlp_width=352),
    "nano": _trainable(width=256, layout="SML*SML", num_heads=4, mlp_width=512),
    "25m": _trainable(width=512, layout="SML*" * 2, num_heads=8, mlp_width=1408),
    "100m": _trainable(width=768, layout="SML*SMLSML*SML", num_heads=12, mlp_width=2048),
    "350m": _trainable(width=1024, layout="SML*" + "SMLSML*" * 3, num_heads=16, mlp_width=3072),
    "1b": _trainable(width=1920, layout="SML*" + "SMLSML*" * 3, num_heads=15, mlp_width=5120),
}

TRANSFORMERS: dict[str, ModelConfig] = {
    f"{name}-transformer": replace(config, layout="*" * config.num_layers) for name, config in TRAINABLE.items()
}

PRESETS: dict[str, ModelConfig] = {**PUBLISHED, **TRAINABLE, **TRANSFORMERS}


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """Where a published model's weights live on the Hugging Face hub."""

    repository: str
    filename: str


HUB: dict[str, HubSource] = {
    name: HubSource(repository=f"arcinstitute/{name}", filename=f"{name}.pt") for name in PUBLISHED
}


def preset(name: str) -> ModelConfig:
    """Return the configuration called `name`.

    Raises:
        Sh2Error: no preset has that name; the hint names the closest one.
    """
    if name in PRESETS:
        return PRESETS[name]
    error = Sh2Error(f"unknown preset `{name}`")
    if close := get_close_matches(name, PRESETS, n=1):
        raise error.hint(f"did you mean `{close[0]}`?")
    raise error.hint(f"known presets: {', '.join(PRESETS)}")
