"""Which model is meant, without reading its weights: its configuration, and in which numbers it would run."""

from pathlib import Path
from typing import TYPE_CHECKING

from evo_cli.inference import Precision
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.planning.accounting import Numbers, count_parameters
from sh2.presets import PRESETS, PUBLISHED, preset

if TYPE_CHECKING:
    from sh2.model import StripedHyena2


def model_config(name: str) -> tuple[ModelConfig, str]:
    """The configuration of a preset or of a stored model, and the dtype that its file has: `bf16` or `fp32`.

    Nothing is downloaded: the name of a published model is that of its preset.

    Raises:
        Sh2Error: there is neither a file nor a preset of that name, or the file is no model.
    """
    if not Path(name).exists():
        if name not in PRESETS and "/" in name:
            raise Sh2Error(f"{name} does not exist").hint(f"give a model folder or a preset: {', '.join(PRESETS)}")
        return preset(name), "bf16" if name in PUBLISHED else "fp32"
    from sh2.checkpoint.source import open_model

    found = open_model(name)
    narrow = all(tensor.dtype.itemsize == 2 for key, tensor in found.tensors.items() if key.endswith(".weight"))
    return found.config, "bf16" if narrow else "fp32"


def numbers_of(
    config: ModelConfig, stored: str, precision: Precision, *, gpu: bool, lacks_fp8: bool, plain: bool
) -> Numbers:
    """In which numbers a model would run, as `--precision` says.

    Args:
        stored: the dtype of its file. gpu, lacks_fp8: what the device is, and has not. plain: plain torch is asked for.

    Raises:
        Sh2Error: FP8 is asked for where there is none.
    """
    dtype = stored if gpu else "fp32"
    projections = None
    packed = precision is Precision.FP8_WEIGHTS
    if packed and gpu:
        dtype = "bf16"
    if precision in (Precision.BF16, Precision.FP32):
        dtype = precision.value
    elif precision is Precision.FP8 and lacks_fp8:
        raise Sh2Error("precision fp8 cannot run there: the device has no FP8 products").hint(
            "fp8-emulated rounds alike on any device"
        )
    elif precision is not Precision.AUTO and not packed:
        projections = precision.value
    elif config.fp8_input_projections:
        projections = (Precision.FP8_EMULATED if lacks_fp8 else Precision.FP8).value
    return Numbers(dtype=dtype, projections=projections, fused=gpu and not plain, fp8_weights=packed)


def model_to_time(name: str, device: str, precision: Precision, backend: str) -> "tuple[StripedHyena2, Numbers]":
    """A stored model, or one of a preset's shape with random weights, on a device.

    Raises:
        Sh2Error: as `model_config`, or the backend or the precision cannot run there.
    """
    import torch

    from evo_cli.inference import BackendName, load_model, say
    from sh2.bench.models import random_model
    from sh2.fp8 import fp8_lacks, precision_of

    config, stored = model_config(name)
    gpu = torch.device(device).type == "cuda"
    lacks = fp8_lacks(torch.device(device), config.width) is not None
    # of random weights no file says a dtype: what is fast
    numbers = numbers_of(
        config,
        stored if Path(name).exists() else "bf16",
        precision,
        gpu=gpu,
        lacks_fp8=lacks,
        plain=backend == BackendName.REFERENCE,
    )
    if Path(name).exists():
        return load_model(name, device, precision, BackendName(backend)), numbers
    dtype = torch.bfloat16 if numbers.dtype == "bf16" else torch.float32
    model = random_model(config, device=device, dtype=dtype, fp8_weights=numbers.fp8_weights)
    if not numbers.fp8_weights:
        model.use_precision(numbers.projections or numbers.dtype)
    model.use_backend(backend)
    say(f"{name}: {count_parameters(config) / 1e6:,.1f}M random parameters, in {precision_of(model)}, on {device}")
    return model, numbers
