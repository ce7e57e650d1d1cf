"""What the commands that run a model share: the model's options, and loading it with a word on stderr."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.allocation import keep_freed_memory
from sh2.errors import Sh2Error

if TYPE_CHECKING:
    from sh2.config import ModelConfig
    from sh2.devices.replicas import Replicas
    from sh2.model import StripedHyena2


class Precision(StrEnum):
    """In which numbers a model runs; filters' states and log-probabilities are float32 in any case."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"
    FP8 = "fp8"
    FP8_EMULATED = "fp8-emulated"
    FP8_WEIGHTS = "fp8-weights"


class KVDtype(StrEnum):
    """In which numbers attention keeps keys and values."""

    AUTO = "auto"
    FP8 = "fp8"


class BackendName(StrEnum):
    """What runs the hyena operators."""

    AUTO = "auto"
    TRITON = "triton"
    REFERENCE = "reference"


def _model_or_box(ctx: typer.Context, name: str) -> str:
    if name or ctx.resilient_parsing:
        return name
    from evo_cli.box import ABOUT, MODEL

    say(f"no --model: the one in the box, {ABOUT}")
    return str(MODEL)


_MODEL_HELP = "A model folder, a published .pt or safetensors file, a published name or a hub id"
ModelOption = Annotated[str, typer.Option("--model", "-m", help=f"{_MODEL_HELP}.")]
BoxedModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"{_MODEL_HELP}; the small one in the box by default.",
        callback=_model_or_box,
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda or cuda:N. all, or cuda:0,cuda:2: a copy of the model on each GPU."
        " cuda:0+cuda:1: one model over both. cuda:0+cpu: what does not fit the GPU is streamed to it.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="auto: the file's own on a GPU, fp32 on a CPU; with FP8 input projections where the model was trained so,"
        " emulated where the hardware has none. fp8-weights: as auto, but weights are kept in FP8, in half the memory.",
    ),
]
BackendOption = Annotated[
    BackendName,
    typer.Option("--backend", help="auto takes the Triton kernels on a GPU where they run; reference is plain torch."),
]
KVDtypeOption = Annotated[
    KVDtype,
    typer.Option(
        "--kv-dtype",
        help="How attention keeps the tokens seen: auto as the model computes, fp8 in half the memory of bf16.",
    ),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens in one batch, at most.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Begin anew, whatever an earlier run left at --output.")
]


def say(message: str) -> None:
    """Print a line of talk on stderr."""
    typer.echo(message, err=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    typer.secho(f"warning: {message}", fg="yellow", err=True)


def load_model(name: str, device: str, precision: Precision, backend: BackendName) -> "StripedHyena2":
    """Load a model for inference, once.

    Raises:
        Sh2Error: the model cannot be read, a device is not there, several copies are asked for, or the backend cannot
            run the model.
    """
    where, *others = resolve_devices(device)
    if others:
        raise Sh2Error(f"this command runs one copy of the model, not one on each of `{device}`").hint(
            "use auto, cpu, cuda or cuda:N"
        )
    return _load(where, name, precision, backend)


def open_replicas(
    name: str, device: str, precision: Precision, backend: BackendName, kv_dtype: KVDtype = KVDtype.AUTO
) -> "Replicas":
    """Load a model for work that is done in jobs, on the device or devices asked for.

    Raises:
        Sh2Error: as `load_model`.
    """
    from functools import partial

    from sh2.devices.replicas import Replicas

    devices = resolve_devices(device)
    if len(devices) > 1:
        say(f"{len(devices)} copies of the model, on {', '.join(devices)}")
    return Replicas(partial(_load, name=name, precision=precision, backend=backend, kv_dtype=kv_dtype), devices)


def _load(
    where: str, name: str, precision: Precision, backend: BackendName, kv_dtype: KVDtype = KVDtype.AUTO
) -> "StripedHyena2":
    import torch

    import sh2
    from sh2.planning.accounting import count_parameters

    own = torch.float32 if where.startswith("cpu") else None
    packed = precision is Precision.FP8_WEIGHTS
    dtypes = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}
    dtypes[Precision.FP8_WEIGHTS] = own or torch.bfloat16
    model = sh2.load(name, device=where, dtype=dtypes.get(precision, own), fp8_weights=packed)
    home = model.embedding.weight.device
    if home.type == "cuda":  # whatever is allocated without a word on where it should be
        torch.cuda.set_device(home)
    model.use_precision(precision).use_backend(backend).use_kv_dtype(kv_dtype)
    dtype_name = str(model.embedding.weight.dtype).removeprefix("torch.")
    say(f"{name}: {count_parameters(model.config) / 1e6:,.1f}M parameters, {dtype_name}, on {_spread(model, where)}")
    say_precision(model, asked=precision)
    return model


def _spread(model: "StripedHyena2", where: str) -> str:
    """The device of a model, or how many of its blocks each of several keeps."""
    from collections import Counter

    if "+" not in where:
        return where
    kept = Counter(str(next(block.parameters()).device) for block in model.blocks)
    return f"{where} (blocks: {', '.join(f'{count} on {device}' for device, count in kept.items())})"


def say_precision(model: "StripedHyena2", *, asked: Precision) -> None:
    """Say in one line in which numbers a model runs, and why."""
    from sh2.fp8 import fp8_lacks, precision_of, products_of

    weight, trained = model.embedding.weight, model.config.fp8_input_projections
    runs = precision_of(model)
    if runs == Precision.FP8_WEIGHTS:
        products = products_of(model)
        warn(
            "the weights of linear layers are kept in FP8, rounded to four bits, and every output says"
            f" precision={runs}{f'; input projections run in {products}, as they were trained' if products else ''}"
        )
        return
    if mark := precision_mark(model):
        warn(
            f"the model was trained with FP8 input projections: in {runs} its numbers are wrong, and every output says"
            f" precision={mark}; auto takes them"
        )
        return
    reason = f"the model was {'' if trained else 'not '}trained with FP8 input projections"
    if asked in (Precision.FP8, Precision.FP8_EMULATED) and asked != runs:
        reason = f"{asked} is for the input projections of hyena layers, and it has none"
    elif asked is not Precision.AUTO:
        reason = f"as asked for; {reason}"
    elif runs == Precision.FP8_EMULATED:
        reason += f" and {fp8_lacks(weight.device, model.config.width)}"
    elif not trained:
        reason += f"; {'a CPU runs in fp32' if weight.device.type == 'cpu' else 'this is the dtype of the file'}"
    say(f"precision: {runs} ({reason})")


def kv_option(kv_dtype: KVDtype) -> dict[str, str]:
    """What a run's identity says of it: nothing of `auto`, so that runs from before it was asked for go on."""
    return {} if kv_dtype is KVDtype.AUTO else {"kv_dtype": kv_dtype.value}


def precision_mark(model: "StripedHyena2") -> str | None:
    """What every output says of a model that runs in numbers that are not its own; None of others."""
    from sh2.fp8 import precision_of

    return mark_of(model.config, precision_of(model))


def mark_of(config: "ModelConfig", runs: str) -> str | None:
    """The same, of a model known by its configuration and the numbers that it runs in."""
    if runs == Precision.FP8_WEIGHTS:
        return runs
    wrong = config.fp8_input_projections and not runs.startswith(Precision.FP8)
    return f"{runs}_not_fp8" if wrong else None


def resolve_device(device: str) -> str:
    """Turn `auto` into a device, and check that a named one is there; make the process ready for a model on it.

    Raises:
        Sh2Error: the device does not exist on this machine.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    if device.startswith("cpu"):
        keep_freed_memory()
    return device


def _check_device(device: str) -> None:
    import torch

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


def resolve_devices(text: str) -> list[str]:
    """Turn what `--device` says into the places of the model's copies, each as `sh2.load` takes it.

    Raises:
        Sh2Error: a device does not exist on this machine or is asked for twice, or copies would differ in kind.
    """
    import torch

    from sh2.devices.placement import parse_devices

    if text == "all":
        if not torch.cuda.is_available():
            raise Sh2Error("there is no GPU for `--device all`").hint("run `evo doctor`, or use --device cpu")
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    copies = [copy.strip() for copy in text.split(",")]
    if len(copies) == 1 and "+" not in text:
        return [resolve_device(*copies)]
    devices = [device for copy in copies for device in parse_devices(copy)]
    for device in devices:  # a host behind a GPU gives back what it has freed
        _check_device(str(device))
    gpus = [device.index or 0 for device in devices if device.type == "cuda"]
    if len(set(gpus)) < len(gpus):
        raise Sh2Error(f"`--device {text}` names a GPU twice").hint("a GPU runs one copy of a model, or a part of one")
    if gpus and any(parse_devices(copy)[0].type == "cpu" for copy in copies):
        raise Sh2Error(f"`--device {text}` mixes GPUs and the CPU, which round differently").hint(
            "use GPUs alone: all, or cuda:0,cuda:1"
        )
    return copies


def memory_bytes(device: str) -> int:
    """Memory of a device, in bytes; of the machine for `cpu`."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
