"""The adapters of a model in a file of their own, which says what they belong to.

adapter.safetensors   LAYER.down [R, D] and LAYER.up [E, R], float32; metadata `lora` (JSON: rank, alpha, targets)
                      and `base` (fingerprint of the weights that they were trained beside)
"""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.safetensors_file import read_safetensors, write_safetensors
from sh2.checkpoint.source import Model
from sh2.checkpoint.tensors import LazyTensor
from sh2.config import Lora
from sh2.errors import Sh2Error
from sh2.fingerprint import tensors_fingerprint
from sh2.lora import adapters_of, add_adapters, has_adapters

_BUFFERS = ("log_poles", "inv_freq", "fp8_scales")


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
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, metadata)


def load_adapters(model: nn.Module, path: Path) -> Lora:
    """Put the adapters of a file beside the layers of the model that they were trained with.

    Raises:
        Sh2Error: the file is missing, damaged or no adapter, or belongs to another model.
    """
    tensors = {name: lazy.read() for name, lazy in read_safetensors(path).items()}
    lora, base = _read_metadata(path)
    _check_base(base, _fingerprint(model), path)
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


def merge_stored(model: Model, path: Path) -> Model:
    """Merge the adapters of a file into stored weights, tensor by tensor as they are read.

    Raises:
        Sh2Error: the file is missing, damaged or no adapter, or belongs to another model.
    """
    matrices = read_safetensors(path)
    lora, base = _read_metadata(path)
    trained = sorted(name for name in model.tensors if not name.endswith(_BUFFERS))
    _check_base(base, tensors_fingerprint((name, model.tensors[name].read()) for name in trained), path)
    merged = dict(model.tensors)
    for key in matrices:
        if key.endswith(".up"):
            name = key.removesuffix(".up")
            parts = merged[f"{name}.weight"], matrices[key], matrices[f"{name}.down"]
            merged[f"{name}.weight"] = LazyTensor(
                parts[0].shape, parts[0].dtype, partial(_sum, *parts, lora.alpha / lora.rank)
            )
    return replace(model, tensors=merged)


def _sum(weight: LazyTensor, up: LazyTensor, down: LazyTensor, factor: float) -> Tensor:
    return (weight.read().float() + (up.read().float() @ down.read().float()) * factor).to(weight.dtype)


def _check_base(wanted: str, found: str, path: Path) -> None:
    if wanted != found:
        raise Sh2Error(f"the adapters {path} were trained with other weights than this model's").hint(
            "give the model that they began from"
        )


def _fingerprint(model: nn.Module) -> str:
    """Of the weights beside the adapters; buffers may differ where a model is trained, and where it is used."""
    return tensors_fingerprint(
        sorted((name, parameter) for name, parameter in model.named_parameters() if ".adapter." not in name)
    )


def _read_metadata(path: Path) -> tuple[Lora, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        values = json.loads(metadata["lora"])
        return Lora(**{**values, "targets": tuple(values["targets"])}), metadata["base"]
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise Sh2Error(f"{path} holds no adapters").hint("give the `adapter.safetensors` of a run") from None
