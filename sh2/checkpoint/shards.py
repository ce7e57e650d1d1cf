"""Tensors in one safetensors file, or in several with an index beside them, as the hub has them.

    NAME.safetensors                  up to 5 GB; or NAME-00001-of-0000N.safetensors ... with
    NAME.safetensors.index.json       {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}

Which tensors go into which file depends on their sizes alone. Knows nothing of what they mean.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sh2.checkpoint.safetensors_file import read_safetensors
from sh2.checkpoint.tensors import LazyTensor, Tensors, total_bytes
from sh2.errors import Sh2Error

SHARD_BYTES = 5_000_000_000
_SUFFIX = ".safetensors"


def shard_files(name: str, tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> dict[str, Tensors]:
    """Share consecutive tensors out to files of at most so many bytes (a larger tensor is alone).

    Args:
        name: of the file if it is a single one, `model.safetensors`; folders before it stay.
    """
    shards: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        return {name: shards[0]}
    stem = name.removesuffix(_SUFFIX)
    return {f"{stem}-{number:05d}-of-{len(shards):05d}{_SUFFIX}": shard for number, shard in enumerate(shards, 1)}


def write_index(path: Path, files: Mapping[str, Tensors]) -> None:
    """Write the index that several files need, and sync it to the disk; nothing for one file.

    Args:
        path: of the single file that there would be.
        files: as `shard_files` shared them out.
    """
    if len(files) > 1:
        weight_map = {tensor: Path(name).name for name, tensors in files.items() for tensor in tensors}
        total = sum(total_bytes(tensors) for tensors in files.values())
        write_json(index_of(path), {"metadata": {"total_size": total}, "weight_map": weight_map})


def index_of(path: Path) -> Path:
    """Where the index is, if there is one, of what would be the single file `path`."""
    return path.with_name(f"{path.name}.index.json")


def read_shards(path: Path) -> dict[str, LazyTensor]:
    """Open the file, or those that stand for it: all that the index names must be there.

    Raises:
        Sh2Error: a file is missing, truncated or damaged; the message names it.
    """
    index = index_of(path)
    return read_index(index) if index.exists() else read_safetensors(path)


def read_index(path: Path) -> dict[str, LazyTensor]:
    """Open the files that an index of safetensors names."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise Sh2Error(f"{path} has no `weight_map`")
    shards = {name: read_safetensors(path.parent / name) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise Sh2Error(f"{path.parent / shard} has no tensor `{tensor}`, which {path.name} puts there")
    return {tensor: shards[shard][tensor] for tensor, shard in weight_map.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON.

    Raises:
        Sh2Error: the file is missing, or holds no such thing.
    """
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON for people to read, and sync it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
