"""What a training run is told: one frozen dataclass, checked once. Knows nothing of torch, files or terminals."""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from enum import EnumType, StrEnum
from types import MappingProxyType
from typing import Any, Self, get_type_hints

from sh2.ablations import ablate
from sh2.config import LINEAR_LAYERS, Lora, ModelConfig
from sh2.errors import Sh2Error
from sh2.presets import preset
from sh2.recompute import Recompute
from sh2.sharing import AttentionMethod, ConvolutionMethod, Sharding

_MOST_THREADS = 1024
_LORA_ALPHA = 16.0


class Precision(StrEnum):
    """What the forward and backward passes compute in; the weights and the optimizer are float32 either way."""

    BF16 = "bf16"  # torch.autocast to bfloat16
    FP32 = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything of a training run but the model and the data.

    Raises:
        Sh2Error: a value is out of range.
    """

    steps: int
    """Optimizer updates in the whole run; the cosine ends at the last one."""
    batch_size: int = 8
    """Windows in one forward pass."""
    accumulation: int = 1
    """Forward passes an update: an update sees `batch_size * accumulation` windows."""
    length: int = 1024
    """Tokens a window predicts, in bp; at least 2."""
    lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    min_lr_fraction: float = 0.1
    """Learning rate of the last step, as a fraction of `lr`."""
    warmup_fraction: float = 0.05
    """Part of the steps over which the learning rate rises linearly from 0 to `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moving averages."""
    eps: float = 1e-8
    """Added to the denominator of AdamW."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the linear layers' matrices; nothing else decays."""
    clip: float = 1.0
    """Largest global norm of the gradients; 0 turns clipping off."""
    precision: Precision = Precision.FP32
    """`bf16` (autocast over float32 weights) or `fp32`."""
    seed: int = 0
    """Decides the first weights and the order of the windows."""
    valid_every: int = 100
    """Steps between two validations, 0 for one at the end only."""
    valid_windows: int = 64
    """Held-out windows a validation scores, always the same ones; 0 turns validation off."""
    save_every: int = 100
    """Steps between two checkpoints, 0 for one at the end only."""
    keep_last: int = 2
    """Checkpoints kept, besides that of the best validation."""
    log_every: int = 10
    """Steps between two lines of progress and of `speed.jsonl`; `metrics.jsonl` has a line for every step."""
    reset_documents: bool = False
    """Start every record of a window from an empty state, so that nothing leaks from the record before it."""
    lower_case_weight: float = 0.1
    """Weight in the loss of a soft-masked (lower-case) base; an upper-case one has 1."""
    reverse_complement: bool = True
    """Read half of the training windows, chosen by the seed, from the other strand."""
    freeze: tuple[str, ...] = ()
    """What is not trained: names of `sh2.train.freeze.PARTS` or patterns of parameters' names."""
    lora_rank: int = 0
    """Rank of the adapters that are trained in place of the weights; 0 trains the weights."""
    lora_alpha: float = _LORA_ALPHA
    """Over the rank, what the adapters' products are multiplied by."""
    lora_targets: tuple[str, ...] = LINEAR_LAYERS
    """The linear layers that are adapted."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    threads: int = 0
    """CPU threads, 0 for as many as torch finds; results are bit-equal only for the same number."""
    backend: str = "auto"
    """What runs the hyena operators, as for `StripedHyena2.use_backend`: `auto`, `triton` or `reference`."""
    compile: bool = False
    """Compile the blocks and the loss by torch.compile: a minute or so at the start, for faster steps."""
    recompute: Recompute = Recompute.NONE
    """What the backward pass makes again for the memory of keeping it: `none`, `selective`, `full` or `nested`."""
    parallel: str = "dp"
    """How the processes of a run share it, as `dp=4,tp=2,cp=2`; dp without a number takes what is left."""
    cp_method: ConvolutionMethod = ConvolutionMethod.STATE
    """How convolutions look across the pieces of a window."""
    cp_attention: AttentionMethod = AttentionMethod.RING
    """How attention does: `ring` or `a2a`."""
    cp_sharding: Sharding = Sharding.CONTIGUOUS
    """Which pieces of a window a process has: `contiguous`, or `zigzag`, which gives ring attention equal work."""
    fp8_linears: bool = False
    """Take the products of the blocks' linear layers in FP8: `sh2.train.fp8`."""
    peak_tflops: float = 0.0
    """What the device does at best, for the part of it that a run uses; 0 measures a large matrix product."""
    filter_statistics: int = 0
    """Steps between two lines of `filters.jsonl`, 0 for none."""
    profile: int = 0
    """A step to write a trace of, 0 for none."""

    def __post_init__(self) -> None:
        self._check_at_least(1, "steps", "batch_size", "accumulation", "keep_last", "log_every")
        self._check_at_least(2, "length")
        self._check_at_least(0, "seed", "valid_every", "valid_windows", "save_every", "threads")
        self._check_at_least(0, "peak_tflops", "filter_statistics", "profile")
        self._check_at_least(0, "weight_decay", "clip", "lower_case_weight", "lora_rank")
        for name, kind in _CHOICES.items():
            if not isinstance(getattr(self, name), kind):
                raise Sh2Error(f"train field `{name}` must be a {kind.__name__}, not {getattr(self, name)!r}")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise Sh2Error(f"train field `{name}` must be a number above 0, not {getattr(self, name)}")
        for name in ("min_lr_fraction", "warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise Sh2Error(f"train field `{name}` must lie between 0 and 1, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Sh2Error(f"train field `betas` must lie in [0, 1), not {list(self.betas)}")
        if self.compile and self.reset_documents:
            raise Sh2Error("train fields `compile` and `reset_documents` cannot both be true").hint(
                "what is compiled has one length, and documents cut windows into pieces of any: turn one of them off"
            )
        if self.lora is not None and self.freeze:
            raise Sh2Error("train fields `freeze` and `lora_rank` cannot both be given").hint(
                "adapters leave all weights as they are: leave out `--freeze`"
            )
        if self.fp8_linears and self.lora is not None:
            raise Sh2Error("train fields `fp8_linears` and `lora_rank` cannot both be given").hint(
                "adapters are beside the linear layers, not in them: leave out `--fp8-linears`"
            )
        if self.recompute is not Recompute.NONE and self.reset_documents:
            raise Sh2Error(
                f"train fields `recompute` ({self.recompute}) and `reset_documents` cannot both be given"
            ).hint("documents cut windows into pieces that states join: turn one of them off")
        if not self.lora_rank and (self.lora_alpha, self.lora_targets) != (_LORA_ALPHA, LINEAR_LAYERS):
            raise Sh2Error("train fields `lora_alpha` and `lora_targets` are of adapters, and there are none").hint(
                "give their rank, `--lora-rank`"
            )
        if self.profile > self.steps:
            raise Sh2Error(f"train field `profile` must be one of the {self.steps} steps, not {self.profile}")
        if self.threads > _MOST_THREADS:
            raise Sh2Error(f"train field `threads` must be at most {_MOST_THREADS}, not {self.threads}")

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            if not least <= getattr(self, name) < math.inf:
                raise Sh2Error(f"train field `{name}` must be at least {least}, not {getattr(self, name)}")

    @property
    def lora(self) -> Lora | None:
        """The adapters that are trained, if any."""
        if not self.lora_rank:
            return None
        return Lora(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets)

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return round(self.warmup_fraction * self.steps)

    @property
    def windows_per_step(self) -> int:
        """Windows an update sees."""
        return self.batch_size * self.accumulation

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON and TOML; `from_dict` reads them back."""
        values = asdict(self)
        texts = {name: values[name].value for name in _CHOICES}
        return {**values, **texts, **{name: list(value) for name, value in values.items() if isinstance(value, tuple)}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values, of exactly the right types (a whole number may stand for a float).

        Raises:
            Sh2Error: a key is unknown or missing, or a value has the wrong type or is out of range.
        """
        known = get_type_hints(cls)
        for key in values:
            check_known(key, known, table="train")
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [key for key in required if key not in values]:
            raise Sh2Error(f"train field `{missing[0]}` is missing").hint(
                f"give `--{missing[0]}`, or `{missing[0]} = ...` under [train] in the configuration file"
            )
        return cls(**{key: read_value("train", key, known[key], value) for key, value in values.items()})


_CHOICES = {name: kind for name, kind in get_type_hints(TrainConfig).items() if isinstance(kind, EnumType)}


def model_from_table(table: Mapping[str, Any]) -> ModelConfig:
    """Read a [model] table: a `preset`, one of its `ablation`s, any fields of `ModelConfig`, or a mixture of these.

    Raises:
        Sh2Error: unknown preset, ablation or field, a missing field, or a value that is not allowed.
    """
    values = dict(table)
    name, ablation = values.pop("preset", None), values.pop("ablation", None)
    known = get_type_hints(ModelConfig)
    for key, value in values.items():
        check_known(key, known, table="model")
        values[key] = read_value("model", key, known[key], value)
    base = {} if name is None else preset(_text("model field `preset`", name)).to_dict()
    # what was trained with FP8 elsewhere is trained without it here
    config = ModelConfig.from_dict({**base, "fp8_input_projections": False, **values})
    return config if ablation is None else ablate(config, _text("model field `ablation`", ablation))


def check_known(key: str, known: Mapping[str, object], *, table: str) -> None:
    """Refuse a key of a table that is not in `known`, naming the closest one that is.

    Raises:
        Sh2Error: the key is unknown.
    """
    if key in known:
        return
    error = Sh2Error(f"unknown {table} field `{key}`")
    if close := get_close_matches(key, known, n=1):
        raise error.hint(f"did you mean `{close[0]}`?")
    raise error.hint(f"known fields: {', '.join(known)}")


ROUNDING = ("threads", "device", "backend", "compile", "recompute", "cp_method", "cp_attention", "cp_sharding")
"""Fields that decide in which order sums are taken, and so the last bits of a run's numbers."""
MAY_CHANGE = frozenset(
    {"save_every", "keep_last", "log_every", "peak_tflops", "filter_statistics", "profile", "parallel", *ROUNDING}
)
"""Fields that a resumed run may change: they decide neither the weights (up to rounding) nor the metrics written."""


def check_unchanged(table: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other values than it began with.

    Raises:
        Sh2Error: names the first field that differs and is not in `MAY_CHANGE`.
    """
    for key in [*saved, *(key for key in asked if key not in saved)]:
        if key not in MAY_CHANGE and saved.get(key) != asked.get(key):
            raise Sh2Error(
                f"cannot resume with {table} field `{key}` changed from {saved.get(key)!r} to {asked.get(key)!r}"
            ).hint("resume with the value the run began with, or train into another folder")


def _whole(key: str, value: object) -> int:
    if type(value) is not int:
        raise _wrong(key, "a whole number", value)
    return value


def _number(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(key, "a number", value)
    return float(value)


def _flag(key: str, value: object) -> bool:
    if type(value) is not bool:
        raise _wrong(key, "true or false", value)
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(key, "text", value)
    return value


def _pair(key: str, value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _wrong(key, "a pair of numbers", value)
    return _number(key, value[0]), _number(key, value[1])


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(key, "a list of texts", value)
    return tuple(_text(key, item) for item in value)


def _wrong(key: str, wanted: str, value: object) -> Sh2Error:
    return Sh2Error(f"{key} must be {wanted}, not {value!r}")


_READERS: Mapping[Any, Callable[[str, object], Any]] = MappingProxyType(
    {
        int: _whole,
        float: _number,
        bool: _flag,
        str: _text,
        tuple[float, float]: _pair,
        tuple[str, ...]: _texts,
    }
)


def read_value(table: str, key: str, kind: object, value: object) -> Any:
    """Check the type of one value of a table; a kind that has no reader here is left to the class it goes to.

    Raises:
        Sh2Error: the value has another type.
    """
    name = f"{table} field `{key}`"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in list(kind):
            raise _wrong(name, " or ".join(f"`{member}`" for member in kind), value)
        return kind(str(value))
    reader = _READERS.get(kind)
    return value if reader is None else reader(name, value)
