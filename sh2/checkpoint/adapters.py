"""The adapters of a model in a file of their own, which says what they belong to.

adapter.safetensors   LAYER.down [R, D] and LAYER.up [E, R], float32; metadata `lora` (JSON: rank, alpha, targets)
                      and `base` (fingerprint of the weights that they were trained beside)
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.safetensors_file import read_safetensors, write_safetensors
from sh2.checkpoint.tensors import LazyTensor
from sh2.config import Lora
from sh2.errors import Sh2Error
from sh2.fingerprint import tensors_fingerprint
from sh2.lora import adapters_of, add_adapters, has_adapters


def save_adapters(model: nn.Module, path: Path) -> None:
    """Write the adapters alone: a safetensors file with the layers' names, and what they belong to in its metadata.

    Raises:
        Sh2Error: the file cannot be written.
    """
    adapters = dict(adapters_of(model))
    tensors = {
        f"{name}.{part}": LazyTensor.of(getattr(adapter, part))
        for name, adapter in adapters.items()
        for part in ("down", "up")
    }
    lora = next(iter(adapters.values())).lora
    metadata = {"lora": json.dumps(asdict(lora)), "base": _fingerprint(model)}
    with replacing(path) as partial:
        write_safetensors(partial, tensors, metadata)


def load_adapters(model: nn.Module, path: Path) -> Lora:
    """Put the adapters of a file beside the layers of the model that they were trained with.

    Raises:
        Sh2Error: the file is missing, damaged or no adapter, or belongs to another model.
    """
    tensors = {name: lazy.read() for name, lazy in read_safetensors(path).items()}
    lora, base = _read_metadata(path)
    if base != _fingerprint(model):
        raise Sh2Error(f"the adapters {path} were trained with other weights than this model's").hint(
            "give the model that they began from"
        )
    if not has_adapters(model):
        add_adapters(model, lora, seed=0)
    adapters = dict(adapters_of(model))
    expected = {f"{name}.{part}" for name in adapters for part in ("down", "up")}
    if tensors.keys() != expected:
        raise Sh2Error(f"the adapters {path} are of other layers: `{min(tensors.keys() ^ expected)}`")
    with torch.no_grad():
        for key, tensor in tensors.items():
            name, _, part = key.rpartition(".")
            getattr(adapters[name], part).copy_(tensor)
    return lora


def _fingerprint(model: nn.Module) -> str:
    """Of the weights beside the adapters; buffers may differ where a model is trained, and where it is used."""
    return tensors_fingerprint(
        {name: parameter for name, parameter in model.named_parameters() if ".adapter." not in name}
    )


def _read_metadata(path: Path) -> tuple[Lora, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        values = json.loads(metadata["lora"])
        return Lora(**{**values, "targets": tuple(values["targets"])}), metadata["base"]
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise Sh2Error(f"{path} holds no adapters").hint("give the `adapter.safetensors` of a run") from None
