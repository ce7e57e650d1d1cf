"""The shape of a model, and of adapters beside it: frozen dataclasses, checked once. Knows nothing of torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from sh2.errors import Sh2Error


class MixerKind(StrEnum):
    """A letter of the layout: which sequence mixer a block holds (paper section 2)."""

    HYENA_SE = "S"
    HYENA_MR = "M"
    HYENA_LI = "L"
    ATTENTION = "*"


class FeedForward(StrEnum):
    """What follows the mixer in a block."""

    GATED_MLP = "gated_mlp"
    HYENA_SE = "hyena_se"


class Activation(StrEnum):
    """The non-linearity on the gate of the gated MLP."""

    GELU = "gelu"  # exact, by the error function
    SILU = "silu"
    IDENTITY = "identity"


class RotaryFrequencies(StrEnum):
    """Where the rotary frequencies come from."""

    BASE = "base"  # rotary_base ** (-2j / head_dim), computed in float32
    STORED = "stored"  # the checkpoint's own values, which win over the base: published files hold rounded ones


@dataclass(frozen=True, kw_only=True, slots=True)
class DecayWindow:
    """The fixed window of Hyena-MR: tap k of group g is multiplied by exp(-alpha_g k), k counted in tokens.

    `alpha_first` and `alpha_last` are the rates, per tap, of the first and the last filter group; those between are
    spaced evenly in the logarithm (paper section 2, Hyena-MR).
    """

    alpha_first: float
    alpha_last: float

    def __post_init__(self) -> None:
        for name in ("alpha_first", "alpha_last"):
            if not getattr(self, name) > 0:
                raise Sh2Error(f"the decay window needs {name} > 0, not {getattr(self, name)}")


# alpha swept from 0.01 to 100 over groups, on a time axis that the published training code scaled to [0, 1] over its
# 8,192 positions: the same rates, per tap
PUBLISHED_WINDOW = DecayWindow(alpha_first=1e-2 / 8191, alpha_last=1e2 / 8191)
# from a memory of a thousand tokens, which 128 taps leave flat, to one of three
DEFAULT_WINDOW = DecayWindow(alpha_first=1e-3, alpha_last=0.3)

NAMED_WINDOWS: dict[str, DecayWindow | None] = {
    "none": None,
    "default": DEFAULT_WINDOW,
    "published": PUBLISHED_WINDOW,
}
"""Decay windows that a configuration file can name instead of giving the rates."""


LINEAR_LAYERS = ("input", "output", "gate", "up", "down")
"""The linear layers of a block, by the last part of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank adapters: y = W x becomes y = W x + (alpha / rank) U V x, with V [rank, inputs] and U [outputs, rank].

    targets: which of `LINEAR_LAYERS` are adapted.

    Raises:
        Sh2Error: a value is not allowed.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = LINEAR_LAYERS

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise Sh2Error(f"adapters need a rank of at least 1 and an alpha above 0, not {self.rank} and {self.alpha}")
        if unknown := sorted(set(self.targets) - set(LINEAR_LAYERS)):
            raise Sh2Error(f"unknown target `{unknown[0]}` of adapters").hint(f"use {', '.join(LINEAR_LAYERS)}")
        if not self.targets:
            raise Sh2Error("adapters have no targets").hint(f"give some of {', '.join(LINEAR_LAYERS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A StripedHyena 2 model: everything that decides the shapes of its weights and what is computed with them."""

    width: int
    layout: str  # one letter a block, `SML*`: S hyena_se, M hyena_mr, L hyena_li, * attention
    num_heads: int
    mlp_width: int
    se_groups: int  # filter groups: channels of one group share one filter
    mr_groups: int

    vocab_size: int = 512
    context: int = 8192  # longest training sequence; nothing in the model has this size
    featurizer_taps: int = 3
    se_taps: int = 7
    se_skip: bool = False
    mr_taps: int = 128
    mr_skip: bool = True
    mr_window: DecayWindow | None = None  # None: learned taps are used as they are (published files: folded in)
    num_modes: int = 16  # real exponentials a channel in hyena_li
    queries_per_kv_head: int = 1
    feed_forward: FeedForward = FeedForward.GATED_MLP
    activation: Activation = Activation.GELU
    first_activation: Activation | None = None  # block 0's own, where it differs
    rotary_base: float = 10_000.0
    rotary_interpolation: float = 1.0  # positions are divided by this
    rotary_frequencies: RotaryFrequencies = RotaryFrequencies.BASE
    norm_eps: float = 1e-6  # added to the root mean square, not under the root
    input_bias: bool = False
    featurizer_bias: bool = False
    hyena_output_bias: bool = True
    attention_output_bias: bool = True
    tied_embeddings: bool = True
    fp8_input_projections: bool = False  # how the hyena input projections were trained

    def __post_init__(self) -> None:
        unknown = sorted(set(self.layout) - {kind.value for kind in MixerKind})
        if unknown or not self.layout:
            raise Sh2Error(f"layout `{self.layout}` may hold only S, M, L and *, at least one, not {unknown}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", int) and (type(value) is not int or value < 1):
                raise Sh2Error(f"{field.name} must be a whole number of at least 1, not {value!r}")
            if field.type in ("float", float) and not value > 0:
                raise Sh2Error(f"{field.name} must be above 0, not {value!r}")
        for divisor in ("num_heads", "se_groups", "mr_groups"):
            if self.width % getattr(self, divisor):
                raise Sh2Error(f"width {self.width} is not a multiple of {divisor} {getattr(self, divisor)}")
        if self.num_heads % self.queries_per_kv_head:
            raise Sh2Error(
                f"num_heads {self.num_heads} is not a multiple of queries_per_kv_head {self.queries_per_kv_head}"
            )
        if self.head_dim % 2:
            raise Sh2Error(f"a head has {self.head_dim} channels; rotary embedding needs an even number")

    @property
    def kinds(self) -> tuple[MixerKind, ...]:
        """The mixer of every block, first to last."""
        return tuple(MixerKind(letter) for letter in self.layout)

    @property
    def num_layers(self) -> int:
        return len(self.layout)

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads // self.queries_per_kv_head

    def activation_of(self, layer: int) -> Activation:
        """The gate's non-linearity in block `layer`, counted from 0."""
        if layer == 0 and self.first_activation is not None:
            return self.first_activation
        return self.activation

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from plain values.

        Raises:
            Sh2Error: a key is unknown or missing, or a value is not allowed.
        """
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise Sh2Error(f"unknown model field {', '.join(f'`{key}`' for key in unknown)}").hint(
                f"known fields: {', '.join(known)}"
            )
        required = ("width", "layout", "num_heads", "mlp_width", "se_groups", "mr_groups")
        if missing := [key for key in required if key not in values]:
            raise Sh2Error(f"model field {', '.join(f'`{key}`' for key in missing)} is missing")
        read = dict(values)
        for key, enum in _ENUMS.items():
            if read.get(key) is not None:
                read[key] = _member(key, enum, read[key])
        read["mr_window"] = _window(read.get("mr_window"))
        return cls(**read)


_ENUMS: dict[str, type[StrEnum]] = {
    "feed_forward": FeedForward,
    "activation": Activation,
    "first_activation": Activation,
    "rotary_frequencies": RotaryFrequencies,
}


def _member(key: str, enum: type[StrEnum], value: object) -> StrEnum:
    try:
        return enum(str(value))
    except ValueError:
        allowed = ", ".join(member.value for member in enum)
        raise Sh2Error(f"{key} must be one of {allowed}, not `{value}`") from None


def _window(value: object) -> DecayWindow | None:
    if isinstance(value, str) and value in NAMED_WINDOWS:
        return NAMED_WINDOWS[value]
    if isinstance(value, Mapping) and set(value) == {"alpha_first", "alpha_last"}:
        return DecayWindow(**value)
    if value is None or isinstance(value, DecayWindow):
        return value
    names = ", ".join(NAMED_WINDOWS)
    raise Sh2Error(f"mr_window must be {names} or a table of alpha_first and alpha_last, not {value!r}")
