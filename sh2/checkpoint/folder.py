"""A model folder in our format: `config.json` beside safetensors, in shards above 5 GB.

    config.json                       {"format": "evo-sh2", "format_version": 1, "evo_version": ..., "model": {...}}
    model.safetensors                 up to 5 GB; or model-00001-of-0000N.safetensors ... with
    model.safetensors.index.json      {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}

Knows nothing of models in memory or of other formats.
"""

import hashlib
import json
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.safetensors_file import read_safetensors, tensor_bytes, write_safetensors
from sh2.checkpoint.tensors import LazyTensor, Progress, Tensors, total_bytes
from sh2.config import ModelConfig
from sh2.errors import Sh2Error

FORMAT = "evo-sh2"
FORMAT_VERSION = 1
SHARD_BYTES = 5_000_000_000
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
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
    content = _read_json(path)
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
    if not (folder / INDEX).exists():
        return read_safetensors(folder / WEIGHTS)
    return read_index(folder / INDEX)


def read_index(path: Path) -> dict[str, LazyTensor]:
    """Open the shards that an index of safetensors names."""
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise Sh2Error(f"{path} has no `weight_map`")
    shards = {name: read_safetensors(path.parent / name) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise Sh2Error(f"{path.parent / shard} has no tensor `{tensor}`, which {path.name} puts there")
    return {tensor: shards[shard][tensor] for tensor, shard in weight_map.items()}


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

    shards = _shards(tensors, shard_bytes)
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    metadata = {"evo_format": FORMAT, "evo_format_version": str(FORMAT_VERSION), "evo_version": evo_version()}
    with replacing(folder) as partial:
        partial.mkdir()
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(partial / name, shard, metadata, wrote)
        if len(shards) > 1:
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(partial / CONFIG, {
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


def _shards(tensors: Tensors, shard_bytes: int) -> list[dict[str, LazyTensor]]:
    """Consecutive tensors, at most `shard_bytes` together (a larger one is alone)."""
    shards: list[dict[str, LazyTensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and total_bytes(shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Sh2Error(f"{path} does not exist").hint(
            "give a model folder, as `evo train` or `evo convert` write it"
        ) from None
    except (OSError, ValueError) as error:
        raise Sh2Error(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise Sh2Error(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
