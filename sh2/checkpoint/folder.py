"""A model folder in our format: `config.json` beside safetensors, in shards above 5 GB.

    config.json                       {"format": "evo-sh2", "format_version": 1, "evo_version": ..., "model": {...}}
    model.safetensors                 or several and an index, as `sh2.checkpoint.shards` has them

Knows nothing of models in memory or of other formats.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.safetensors_file import write_safetensors
from sh2.checkpoint.shards import SHARD_BYTES, read_json, read_shards, shard_files, write_index, write_json
from sh2.checkpoint.tensors import LazyTensor, Progress, Tensors, tensor_bytes, total_bytes
from sh2.config import ModelConfig
from sh2.errors import Sh2Error

FORMAT = "evo-sh2"
FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_OURS = re.compile(r"config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def is_model_folder(folder: Path) -> bool:
    """Whether the folder says that it is in our format."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_model_config(folder: Path) -> ModelConfig:
    """Read the configuration of a model folder.

    Raises:
        Sh2Error: `config.json` is missing, damaged, or of a later version of the format.
    """
    path = folder / CONFIG
    content = read_json(path)
    if content.get("format") != FORMAT or not isinstance(content.get("model"), dict):
        raise Sh2Error(f'{path} is not a model configuration: it has no `"format": "{FORMAT}"`')
    if content.get("format_version") != FORMAT_VERSION:
        raise Sh2Error(
            f"{path} is of format version {content.get('format_version')}; this evo reads version {FORMAT_VERSION}"
        ).hint("install a newer evo")
    try:
        return ModelConfig.from_dict(content["model"])
    except (Sh2Error, TypeError) as error:
        raise Sh2Error(f"{path}: {error}") from None


def read_model_tensors(folder: Path) -> dict[str, LazyTensor]:
    """Open the weights of a model folder; shards that the index names must all be there.

    Raises:
        Sh2Error: a file is missing, truncated or damaged; the message names it.
    """
    return read_shards(folder / WEIGHTS)


def write_model_folder(
    folder: Path,
    config: ModelConfig,
    tensors: Tensors,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a model folder, tensor by tensor; it replaces a model folder of that name in one step.

    Raises:
        Sh2Error: the folder holds something else than a model, or cannot be written.
    """
    check_replaceable(folder)
    total, done = total_bytes(tensors), 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    files = shard_files(WEIGHTS, tensors, shard_bytes)
    with replacing(folder) as partial:
        partial.mkdir()
        for name, shard in files.items():
            write_safetensors(partial / name, shard, weights_metadata(), wrote)
        describe_model(partial, config, files)


def weights_metadata() -> dict[str, str]:
    """What the files of weights say of their format."""
    return {"evo_format": FORMAT, "evo_format_version": str(FORMAT_VERSION), "evo_version": evo_version()}


def describe_model(folder: Path, config: ModelConfig, files: Mapping[str, Tensors]) -> None:
    """Write what makes files of weights a model folder: the configuration, and the index if they are several."""
    write_index(folder / WEIGHTS, files)
    write_json(folder / CONFIG, {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "evo_version": evo_version(),
        "model": config.to_dict(),
    })  # fmt: skip


def check_replaceable(folder: Path) -> None:
    """Refuse to overwrite anything but a model folder or an empty one.

    Raises:
        Sh2Error: `folder` is a file, or holds files that no model folder has.
    """
    if folder.is_file():
        raise Sh2Error(f"{folder} is a file; a model is written as a folder")
    if folder.is_dir():
        foreign = sorted(entry.name for entry in folder.iterdir() if not _OURS.fullmatch(entry.name))
        if foreign or (any(folder.iterdir()) and not is_model_folder(folder)):
            what = f"`{foreign[0]}`" if foreign else "files"
            raise Sh2Error(f"{folder} exists and holds {what}, which is no part of a model folder").hint(
                "give the name of a new folder"
            )


def model_hash(folder: Path) -> str:
    """SHA-256 of a model folder: its configuration and every tensor by name; how it is sharded does not matter.

    Raises:
        Sh2Error: the folder is not a complete model folder.
    """
    digest = hashlib.sha256(json.dumps(read_model_config(folder).to_dict(), sort_keys=True).encode())
    tensors = read_model_tensors(folder)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor.read()))
    return digest.hexdigest()


def evo_version() -> str:
    """The installed version of evo."""
    try:
        return version("evo-sh2")
    except PackageNotFoundError:
        return "unknown"
