"""What the commands that run a model share: the model's options, and loading it with a word on stderr."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sh2.errors import Sh2Error

if TYPE_CHECKING:
    from sh2.config import ModelConfig
    from sh2.model import StripedHyena2
    from sh2.replicas import Replicas


class Precision(StrEnum):
    """In which numbers a model runs; filters' states and log-probabilities are float32 in any case."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"
    FP8 = "fp8"
    FP8_EMULATED = "fp8-emulated"


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
    Precision,
    typer.Option(
        "--precision",
        help="auto: the file's own on a GPU, fp32 on a CPU; with FP8 input projections where the model was trained so,"
        " emulated where the hardware has none.",
    ),
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
    own = torch.float32 if where == "cpu" else None
    dtype = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}.get(precision, own)
    model = sh2.load(name, device=where, dtype=dtype).use_precision(precision).use_backend(backend)
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype_name = str(model.embedding.weight.dtype).removeprefix("torch.")
    say(f"{name}: {count / 1e6:,.1f}M parameters, {dtype_name}, on {where}")
    say_precision(model, chosen=precision is not Precision.AUTO)
    return model


def open_replicas(name: str, device: str, precision: Precision, backend: BackendName) -> "Replicas":
    """Load a model for work that is done in jobs, on the device or devices asked for.

    Raises:
        Sh2Error: as `load_model`.
    """
    from functools import partial

    from sh2.replicas import Replicas

    return Replicas(partial(load_model, name, precision=precision, backend=backend), [device])


def say_precision(model: "StripedHyena2", *, chosen: bool) -> None:
    """Say in one line in which numbers a model runs, and why."""
    from sh2.fp8 import fp8_lacks, precision_of

    weight, trained = model.embedding.weight, model.config.fp8_input_projections
    runs = precision_of(model)
    if mark := precision_mark(model):
        warn(
            f"the model was trained with FP8 input projections: in {runs} its numbers are wrong, and every output says"
            f" precision={mark}; auto takes them"
        )
        return
    reason = f"the model was {'' if trained else 'not '}trained with FP8 input projections"
    if chosen:
        reason = f"as asked for; {reason}"
    elif runs == Precision.FP8_EMULATED:
        reason += f" and {fp8_lacks(weight.device, model.config.width)}"
    elif not trained:
        reason += f"; {'a CPU runs in fp32' if weight.device.type == 'cpu' else 'this is the dtype of the file'}"
    say(f"precision: {runs} ({reason})")


def precision_mark(model: "StripedHyena2") -> str | None:
    """What every output says of a model that was trained in FP8 and runs without; None of others."""
    from sh2.fp8 import precision_of

    return mark_of(model.config, precision_of(model))


def mark_of(config: "ModelConfig", runs: str) -> str | None:
    """The same, of a model known by its configuration and the numbers that it runs in."""
    wrong = config.fp8_input_projections and not runs.startswith(Precision.FP8)
    return f"{runs}_not_fp8" if wrong else None


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
