"""What the commands that run a model share: the model's options, and loading it with a word on stderr."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sh2.errors import Sh2Error

if TYPE_CHECKING:
    from sh2.model import StripedHyena2


class Precision(StrEnum):
    """The dtype of weights and activations; filters' states and log-probabilities are float32 in any case."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


class BackendName(StrEnum):
    """What runs the hyena operators."""

    AUTO = "auto"
    TRITON = "triton"
    REFERENCE = "reference"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A model folder, a published .pt or safetensors file, a preset name or a hub id."
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto takes the GPU if there is one.")
]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="auto keeps the file's own on a GPU and takes fp32 on a CPU.")
]
BackendOption = Annotated[
    BackendName,
    typer.Option("--backend", help="auto takes the Triton kernels on a GPU where they run; reference is plain torch."),
]


def say(message: str) -> None:
    """Print a line of talk on stderr."""
    typer.echo(message, err=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    typer.secho(f"warning: {message}", fg="yellow", err=True)


def load_model(name: str, device: str, precision: Precision, backend: BackendName) -> "StripedHyena2":
    """Load a model for inference.

    Raises:
        Sh2Error: the model cannot be read, the device is not there, or the backend cannot run the model on it.
    """
    import torch

    import sh2

    where = resolve_device(device)
    dtype = {Precision.AUTO: torch.float32 if where == "cpu" else None, Precision.BF16: torch.bfloat16}.get(
        precision, torch.float32
    )
    model = sh2.load(name, device=where, dtype=dtype).use_backend(backend)
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype_name = str(model.embedding.weight.dtype).removeprefix("torch.")
    say(f"{name}: {count / 1e6:,.1f}M parameters, {dtype_name}, on {where}")
    if model.config.fp8_input_projections:
        warn("this model was trained with FP8 input projections; without them its numbers differ from the published")
    return model


def resolve_device(device: str) -> str:
    """Turn `auto` into a device, and check that a named one is there.

    Raises:
        Sh2Error: the device does not exist on this machine.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
        known = wanted.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise Sh2Error(f"unknown device `{device}`").hint("use auto, cpu, cuda or cuda:N")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise Sh2Error(f"there is no device `{device}`: torch sees {torch.cuda.device_count()} GPUs").hint(
            "run `evo doctor`, or use --device cpu"
        )
    return device


def memory_bytes(device: str) -> int:
    """Memory of a device, in bytes; of the machine for `cpu`."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
