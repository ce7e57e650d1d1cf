"""The configuration of a training run: a TOML file with [model], [train] and [data], and flags that win over it.

Knows how the tables are merged and written; what their fields mean, the classes they go to know.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Self, get_type_hints

from data.prepare import PrepareOptions
from evo_cli.training.model import shape_of
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.train.config import TrainConfig, check_known, read_value

_STDIN = Path("-")
_BYTES = 256
_WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TABLES = ("model", "train", "data")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run, resolved: given back with `--config`, it says the same again."""

    model: ModelConfig
    train: TrainConfig
    inputs: tuple[Path, ...]
    prepare: PrepareOptions
    start: str | None = None  # the model whose weights the run begins from
    weights: tuple[float, ...] = ()  # of the inputs, which are then stores, in the mixture; none: by their bases

    @classmethod
    def from_tables(cls, tables: Mapping[str, Mapping[str, Any]]) -> Self:
        """Check merged tables and build the run. A new model's context is the length it is trained on.

        Raises:
            Sh2Error: a key is unknown or missing, or a value has the wrong type or is not allowed.
        """
        train = TrainConfig.from_dict(tables.get("train", {}))
        if not tables.get("model"):
            raise Sh2Error("no model is given").hint("give `--preset nano`, `--from MODEL` or a [model] table")
        data = dict(tables.get("data", {}))
        inputs = data.pop("inputs", [])
        if not isinstance(inputs, list) or not all(isinstance(path, str) for path in inputs):
            raise Sh2Error(f"data field `inputs` must be a list of paths, not {inputs!r}")
        weights = data.pop("weights", [])
        if not isinstance(weights, list) or len(weights) not in (0, len(inputs)):
            raise Sh2Error(f"data field `weights` must be a list of a number for each input, not {weights!r}")
        weights = [read_value("data", "weights", float, weight) for weight in weights]
        if not all(isfinite(weight) and weight > 0 for weight in weights):
            raise Sh2Error(f"data field `weights` must be of numbers above 0, not {weights!r}").hint(
                "leave out the stores that are not wanted"
            )
        model, start = shape_of(tables["model"], train)
        if model.vocab_size < _BYTES:
            raise Sh2Error(f"model field `vocab_size` must be at least {_BYTES}, one a byte, not {model.vocab_size}")
        return cls(
            model=model,
            train=train,
            inputs=tuple(Path(path) for path in inputs),
            prepare=_prepare_options(data),
            start=start,
            weights=tuple(weights),
        )

    def data_table(self) -> dict[str, Any]:
        """The [data] table, plain values."""
        prepare = {key: getattr(self.prepare, key) for key in _prepare_kinds()}
        tags = None if self.prepare.tags is None else str(self.prepare.tags)
        mixed = {"weights": list(self.weights)} if self.weights else {}
        return {"inputs": [str(path) for path in self.inputs], **mixed, **prepare, "tags": tags}

    def to_toml(self) -> str:
        """Write every field, defaults included; what is None is left out."""
        start = {} if self.start is None else {"from": self.start}
        tables = {"model": start | self.model.to_dict(), "train": self.train.to_dict(), "data": self.data_table()}
        return "\n".join(
            "".join(
                [f"[{name}]\n", *(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)]
            )
            for name, table in tables.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """What the command line gave; an empty field was not given."""

    model: dict[str, str] = field(default_factory=dict)  # `preset`, `ablation`, `from`, `extend_by`
    inputs: list[Path] = field(default_factory=list)
    train: dict[str, Any] = field(default_factory=dict)


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """Read a configuration file.

    Raises:
        Sh2Error: it is not TOML, or has something beside the three tables.
        FileNotFoundError: there is no such file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Sh2Error(f"{path}: not TOML: {error}") from None
    for key, value in content.items():
        check_known(key, dict.fromkeys(_TABLES), table="configuration")
        if not isinstance(value, dict):
            raise Sh2Error(f"{path}: `{key}` must be a table, [{key}]")
    return content


def merge(*layers: Mapping[str, Mapping[str, Any]], flags: Flags) -> dict[str, dict[str, Any]]:
    """Put layers of tables over one another, the last one and then the flags winning.

    Fields of [train] and [data] win one by one; a [model] table, a preset or a model that is there replaces the model
    as a whole. An input of the command line may have a weight: `STORE=WEIGHT`.
    """
    merged: dict[str, dict[str, Any]] = {name: {} for name in _TABLES}
    for layer in layers:
        merged["train"] |= layer.get("train", {})
        merged["data"] |= layer.get("data", {})
        merged["model"] = dict(layer.get("model") or merged["model"])
    whole = flags.model.keys() & {"preset", "from"}
    merged["model"] = dict(flags.model) if whole else merged["model"] | flags.model
    if flags.inputs:
        merged["data"] |= _inputs_and_weights(flags.inputs)
    merged["train"] |= flags.train
    return merged


def _inputs_and_weights(inputs: Sequence[Path]) -> dict[str, Any]:
    """The paths, from here, and the weights behind them; a file whose name ends like a weight is a file.

    Raises:
        Sh2Error: some inputs have a weight, and some have none; or what stands for one is no number above 0.
    """
    paths, weights = [], []
    for path in inputs:
        text, _, weight = str(path).rpartition("=")
        if text and not path.exists() and _WEIGHT.fullmatch(weight):
            paths.append(Path(text))
            weights.append(float(weight))
            continue
        if text and not path.exists() and Path(text).exists():
            raise Sh2Error(f"the weight of {text} must be a number above 0, such as 0.7, not `{weight}`")
        paths.append(path)
    if weights and len(weights) < len(paths):
        raise Sh2Error(f"{len(weights)} of {len(paths)} inputs have a weight").hint(
            "give every store one, `a.h5=0.7 b.h5=0.3`, or none"
        )
    return {
        "inputs": [str(path) if path == _STDIN else str(path.absolute()) for path in paths],
        "weights": weights,
    }


def _prepare_kinds() -> dict[str, Any]:
    """The fields of [data] that go to `prepare`, and their types; `force` is for a command line only."""
    kinds = get_type_hints(PrepareOptions)
    return {key.name: kinds[key.name] for key in fields(PrepareOptions) if key.name != "force"}


def _prepare_options(table: Mapping[str, Any]) -> PrepareOptions:
    kinds = _prepare_kinds()
    values: dict[str, Any] = {}
    for key, value in table.items():
        check_known(key, {"inputs": list, **kinds}, table="data")
        if key == "tags":
            values[key] = Path(read_value("data", key, str, value)).absolute()
        else:
            values[key] = read_value("data", key, kinds[key], value)
    return PrepareOptions(**values)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)
