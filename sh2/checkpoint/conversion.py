"""Conversion between published files and our folders, one tensor in memory at a time."""

from enum import StrEnum
from pathlib import Path

import yaml

from sh2.checkpoint.adapters import merge_stored
from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.folder import evo_version, write_model_folder
from sh2.checkpoint.published import ours_to_published
from sh2.checkpoint.published_config import to_published
from sh2.checkpoint.safetensors_file import write_safetensors
from sh2.checkpoint.source import Model, open_model
from sh2.checkpoint.tensors import Progress, total_bytes
from sh2.checkpoint.torch_file import write_torch_file
from sh2.errors import Sh2Error

_FILES = (".pt", ".safetensors")


class Target(StrEnum):
    """What a conversion writes."""

    SH2 = "sh2"  # a folder in our format
    PUBLISHED = "published"  # a file that the published code loads, and its configuration


def convert(
    source: str | Path,
    destination: Path,
    *,
    config_file: Path | None = None,
    adapters: Path | None = None,
    target: Target = Target.SH2,
    progress: Progress | None = None,
) -> Path:
    """Convert weights; memory holds one tensor at a time, the disk the source and the result.

    Args:
        source: anything `open_model` opens.
        destination: a folder; for published files also `NAME.pt` or `NAME.safetensors`, with `NAME.yml` beside it
            (a folder gets `model.pt` and `config.yml`).
        config_file: a published configuration, as for `open_model`.
        adapters: a file of adapters that were trained with the source, to be merged into its weights.
        progress: called with the bytes written so far and in all.

    Returns:
        The folder or the weights file written.

    Raises:
        Sh2Error: the source does not open or does not fit, the model cannot be said in the target format, or the
            destination cannot be written. Nothing is left behind then.
    """
    model = open_model(source, config_file)
    if adapters is not None:
        model = merge_stored(model, adapters)
    if target == Target.PUBLISHED:
        return _write_published(model, destination, str(source), progress)
    if destination.suffix in _FILES:
        raise Sh2Error(f"{destination} is the name of a file; a model is written as a folder").hint(
            "give a folder, or `--to published` for a file that the published code loads"
        )
    write_model_folder(destination, model.config, model.tensors, progress=progress)
    return destination


def _write_published(model: Model, destination: Path, label: str, progress: Progress | None) -> Path:
    values = to_published(model.config)
    tensors = ours_to_published(model.tensors, model.config, label)
    weights, config_file = destination, destination.with_suffix(".yml")
    if destination.suffix not in _FILES:
        weights, config_file = destination / "model.pt", destination / "config.yml"
    if weights.is_dir() or (destination.is_file() and weights != destination):
        raise Sh2Error(f"{destination} is in the way: published weights are written to {weights}")
    total, done = total_bytes(tensors), 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with replacing(weights) as partial:
        if weights.suffix == ".safetensors":
            write_safetensors(partial, tensors, {"evo_version": evo_version()}, wrote)
        else:
            write_torch_file(partial, tensors, wrote)
    with replacing(config_file) as partial:
        partial.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return weights
