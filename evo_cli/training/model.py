"""The model that a training run begins with: one of a shape, or one that is there, at its context or a longer one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evo_cli.inference import say, warn
from sh2.checkpoint.source import open_model
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.extension import Extension, extend
from sh2.model import StripedHyena2
from sh2.parallel.mesh import Parallel
from sh2.parallel.processes import Processes
from sh2.presets import PUBLISHED
from sh2.train.config import TrainConfig, model_from_table, read_value
from sh2.train.copies import Copies
from sh2.train.folder import RunFolder
from sh2.train.freeze import freeze
from sh2.train.start import begin_from
from sh2.train.together import Together


def shape_of(table: Mapping[str, Any], train: TrainConfig) -> tuple[ModelConfig, str | None]:
    """Read a [model] table: the configuration, and the model whose weights the run begins from, if there is one.

    A table that a run has saved has both `from` and all fields: its file need not be there any more.

    Raises:
        Sh2Error: a field is unknown or not allowed, or the model cannot be read.
    """
    values = dict(table)
    start, by = values.pop("from", None), values.pop("extend_by", None)
    if start is None:
        if by is not None:
            raise Sh2Error("`--extend-by` extends a model that is there").hint("give it with `--from MODEL`")
        if train.lora is not None:
            raise Sh2Error("adapters (`--lora-rank`) are trained beside the weights of a model that is there").hint(
                "give it with `--from MODEL`"
            )
        return replace(model_from_table(values), context=train.length), None
    start = read_value("model", "from", str, start)
    if "preset" in values:
        raise Sh2Error("`--preset` and `--from` cannot both be given: a model that is there has its shape")
    complete = "width" in values
    config = model_from_table(values if complete else {**_shape(start).to_dict(), **values})
    if by is not None:
        config = extend(config, train.length, read_value("model", "extend_by", Extension, by))
    return replace(config, context=max(config.context, train.length)), start


def build(
    config: ModelConfig, train: TrainConfig, processes: Processes | None
) -> tuple[StripedHyena2, Together | Copies | None]:
    """Make a model with its first weights; one that processes share is nowhere as a whole, but beside adapters.

    Raises:
        Sh2Error: what is frozen is not there, or the processes cannot share the model.
    """
    if processes is None or train.lora is not None:
        if processes is None:
            Parallel.parse(train.parallel, 1)
        copies = None if processes is None else Copies(train, processes)
        model = StripedHyena2(config, seed=train.seed).to(train.device)
        freeze(model, train.freeze)
        return model, copies
    with torch.device("meta"):
        model = StripedHyena2(config)
    freeze(model, train.freeze)
    team = Together(model, train, processes)
    team.initialize(train.seed)
    return model, team


def begin(
    model: StripedHyena2, team: Together | Copies | None, start: str | None, train: TrainConfig, folder: RunFolder
) -> bool:
    """Put the weights in place that the run begins from, and say what is trained; a checkpoint comes over them.

    Returns:
        Whether they are in place; where there is a checkpoint they need not be, and `start` may be gone.

    Raises:
        Sh2Error: the weights cannot be read or do not fit, or what is frozen or adapted is not there.
    """
    lora = train.lora
    # beside adapters, a checkpoint's weights are not those they were added to
    needed = lora is not None or all(path.suffix for path in folder.checkpoints.glob("step_*"))
    if start is not None and needed:
        begin_from(model, start, put=team.put if isinstance(team, Together) else None)
        say(f"from: {start}")
        was = _shape(start)
        if train.length > was.context and _positions(was) == _positions(model.config):
            warn(
                f"windows of {train.length:,} bp are longer than the context of the model, {was.context:,} bp: "
                "`--extend-by` tells attention of that"
            )
    if lora is not None:
        from sh2.lora import add_adapters

        add_adapters(model, lora, seed=train.seed)
    if lora is not None or train.freeze:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        every = sum(parameter.numel() for parameter in model.parameters())
        say(f"trained: {trained:,} of {every:,} parameters{' (adapters)' if lora else ''}")
    return start is None or needed


def _shape(start: str) -> ModelConfig:
    """The configuration of a model that is there; that of a published one is known before it is downloaded."""
    if start in PUBLISHED and not Path(start).exists():
        return PUBLISHED[start]
    return open_model(start).config


def _positions(config: ModelConfig) -> tuple[float, float]:
    return config.rotary_base, config.rotary_interpolation


def absolute(start: str) -> str:
    """A path from here; a name stays a name."""
    return str(Path(start).absolute()) if Path(start).exists() else start
