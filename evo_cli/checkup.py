"""The findings of `evo doctor`: what is on this machine, what is missing, and how to mend it."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from evo_cli.inference import memory_bytes

if TYPE_CHECKING:
    from sh2.config import ModelConfig

_GIB = 2**30
_NEEDED = ("torch", "numpy", "h5py", "pyfaidx", "biopython", "pysam", "safetensors", "huggingface_hub", "matplotlib")
_OPTIONAL = {
    "tensorboard": "TensorBoard logs in `evo train`",
    "pyBigWig": "bigWig files in `evo scan`",
    "pyarrow": "Parquet files in `evo score` and `evo embed`",
}
_LEAST_FREE = 5 * _GIB
_WEIGHTS = 0.75  # of a device's memory: the rest is for states, activations and the rest of the machine


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str
    mend: str = ""


def check_machine() -> Iterator[Finding]:
    """Look at everything, in the order a reader would."""
    yield Finding(level=Level.OK, subject="python", text=f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield from _kernels_package()
    memory = memory_bytes("cpu")
    yield Finding(level=Level.OK, subject="cpu", text=f"{os.cpu_count()} cores, {memory / _GIB:.0f} GiB of memory")
    yield from _triton()
    yield from _gpus()
    yield from _models(memory)
    yield from _disk()
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    yield Finding(
        level=Level.NOTE if offline else Level.OK,
        subject="hub",
        text="HF_HUB_OFFLINE is set: models come from the cache only" if offline else "downloads are allowed",
    )


def _packages() -> Iterator[Finding]:
    for name in _NEEDED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(level=Level.PROBLEM, subject=name, text="not installed", mend=f"pip install {name}")
        else:
            yield Finding(level=Level.OK, subject=name, text=version)
    for name, use in _OPTIONAL.items():
        try:
            yield Finding(level=Level.OK, subject=name, text=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                level=Level.NOTE, subject=name, text=f"not installed: no {use}", mend=f"pip install evo-sh2[{name}]"
            )


def _kernels_package() -> Iterator[Finding]:
    """Another package called `kernels` on PyPI would be imported in place of ours, or ours in place of it."""
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    yield Finding(
        level=Level.PROBLEM,
        subject="kernels",
        text=f"the PyPI package `kernels` {version} is installed; it and ours have one import name",
        mend=f"{sys.executable} -m pip uninstall kernels, or use a virtual environment of its own",
    )


def _triton() -> Iterator[Finding]:
    import torch

    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(level=Level.NOTE, subject="triton", text="not installed: operators run in plain torch")
        return
    if not torch.cuda.is_available():
        text = f"{version}; its kernels need an NVIDIA GPU: operators run in plain torch"
        yield Finding(level=Level.NOTE, subject="triton", text=text)
    elif reason := kernels_failure("cuda"):
        yield Finding(
            level=Level.PROBLEM,
            subject="triton",
            text=f"{version}; its kernels fail on the GPU: {reason}",
            mend="install gcc and Python's headers if they are missing, or use --backend reference",
        )
    else:
        yield Finding(level=Level.OK, subject="triton", text=f"{version}; its kernels run on the GPU")


def kernels_failure(device: str) -> str | None:
    """Run a small model on the Triton kernels; say what went wrong, None if nothing did."""
    import torch

    from sh2.model import StripedHyena2
    from sh2.presets import preset

    model = StripedHyena2(replace(preset("debug"), layout="SML")).to(device)
    try:
        with torch.inference_mode():
            model.use_backend("triton")(torch.zeros(1, 8, dtype=torch.int64, device=device))
            if model.embedding.weight.is_cuda:
                torch.cuda.synchronize()
    except Exception as error:  # whatever it is, it is the finding
        return f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return None


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            yield Finding(level=Level.NOTE, subject="gpu", text="no NVIDIA GPU: everything runs on the CPU")
            return
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield Finding(
                level=Level.NOTE,
                subject="gpu",
                text="hidden by CUDA_VISIBLE_DEVICES: everything runs on the CPU",
                mend="unset CUDA_VISIBLE_DEVICES to use it",
            )
            return
        yield Finding(
            level=Level.PROBLEM,
            subject="gpu",
            text=f"the driver is there but torch {torch.__version__} cannot use the GPU",
            mend="install the CUDA build of torch that fits the driver (pip install torch), and look at nvidia-smi",
        )
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        text = f"{device.name}, {device.total_memory / _GIB:.0f} GiB, compute capability {capability}"
        yield Finding(
            level=Level.OK if device.major >= 8 else Level.NOTE,
            subject=f"cuda:{index}",
            text=text if device.major >= 8 else f"{text}: no bf16 units, use --precision fp32",
        )


def _models(memory: int) -> Iterator[Finding]:
    """Which published models fit, at which precision, on which devices."""
    import torch

    from sh2.presets import PUBLISHED

    gpus = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
    precision = "bf16" if gpus else "fp32"
    fitting: dict[str | None, list[str]] = {}
    for name, config in PUBLISHED.items():
        fitting.setdefault(device_for(config, gpus, memory), []).append(name)
    names = ", ".join(fitting.pop("cuda:0" if gpus else "cpu", [])) or "none of the published ones"
    where = "GPU" if gpus else "CPU"
    copies = "; --device all runs one on each" if len(gpus) > 1 else ""
    text = f"weights that fit {'a' if copies else 'the'} {where} in {precision}: {names}{copies}"
    yield Finding(level=Level.OK, subject="models", text=text)
    for device, larger in fitting.items():
        if device is not None:
            how = "streamed from the host's memory" if device.endswith("cpu") else "cut by layers"
            text = f"{how}, with --device {device}: {', '.join(larger)}"
            yield Finding(level=Level.OK, subject="models", text=text)


def device_for(config: "ModelConfig", gpus: Sequence[int], host: int) -> str | None:
    """The devices, as `--device` takes them, for a model's weights and what comes on top; None if none will do.

    Args:
        gpus: bytes of memory of each. host: that of the machine.
    """
    from sh2.planning.accounting import weight_bytes

    size = weight_bytes(config, "bf16" if gpus else "fp32")
    if not gpus:
        return "cpu" if size < _WEIGHTS * host else None
    for count in range(1, len(gpus) + 1):
        if size < _WEIGHTS * sum(gpus[:count]):
            return "+".join(f"cuda:{index}" for index in range(count))
    return "cuda:0+cpu" if size < _WEIGHTS * (gpus[0] + host) else None


def _disk() -> Iterator[Finding]:
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    for subject, path in (("model cache", cache), ("temporary files", Path(tempfile.gettempdir()))):
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        few = free < _LEAST_FREE
        yield Finding(
            level=Level.NOTE if few else Level.OK,
            subject=subject,
            text=f"{path}, {free / _GIB:.0f} GiB free",
            mend="set HF_HOME or TMPDIR to a larger disk" if few else "",
        )
