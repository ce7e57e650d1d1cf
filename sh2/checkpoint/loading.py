"""A model in memory from a folder, a published file or a name, and back to a folder."""

import math
from collections.abc import Collection, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from sh2.checkpoint.folder import write_model_folder
from sh2.checkpoint.source import Model, open_model
from sh2.checkpoint.staging import copied, map_tensors
from sh2.checkpoint.tensors import LazyTensor, Tensors, check_tensors, stays_float32
from sh2.config import MixerKind, ModelConfig
from sh2.devices.placement import Placement, follow, free_bytes, parse_devices, place
from sh2.devices.streaming import stream
from sh2.errors import Sh2Error
from sh2.fp8 import InputProjection, PackedInputProjection, Precision, fp8_lacks, pack_layers
from sh2.lora import plain_state
from sh2.mixers import Attention
from sh2.mixers.attention import rotary_frequencies
from sh2.model import StripedHyena2
from sh2.packed import PackedLinear, is_packed


def load(
    path_or_name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    fp8_weights: bool = False,
) -> StripedHyena2:
    """Load a model, in evaluation mode.

    Memory holds the model and a few tensors more: they are read, converted and moved several at once, each to its own
    device. A model that was trained with FP8 input projections runs with them: `use_precision` chooses otherwise.

    Args:
        path_or_name: a model folder, a published file with its configuration beside it (or named after a published
            model), the name of a published model (`evo2_7b`) or a repository on the hub.
        device: one of torch's; or `cuda:0+cuda:1`, which cuts the model by layers over GPUs; or `cuda:0+cpu`, which
            keeps on the GPU what fits and streams the weights of the other blocks from the host's memory whenever they
            run, without gradients. Token ids go to, and logits come from, the first device in any case.
        dtype: of the weights; None keeps each as it is stored, except that weights of matrix products that differ
            get the dtype that holds them all. Poles, residues and rotary frequencies are float32 always.
        fp8_weights: keep the weights of all linear layers in FP8, in half the memory of bfloat16, and compute in
            `dtype` with what they then are (see `sh2.packed`). For inference alone; the model cannot be saved.

    Raises:
        Sh2Error: there is no such model, a file is damaged, a tensor does not fit, a device is not there, or its free
            memory does not hold the weights.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise Sh2Error(f"dtype must be a floating type of torch such as torch.bfloat16, not {dtype!r}")
    devices = [_device(one) for one in parse_devices(device)]
    return build(open_model(path_or_name), devices, dtype, label=str(path_or_name), fp8_weights=fp8_weights)


def build(
    source: Model,
    devices: Sequence[torch.device],
    dtype: torch.dtype | None = None,
    *,
    label: str,
    fp8_weights: bool = False,
) -> StripedHyena2:
    """Make a model from a configuration and tensors that are read now; `load` tells the rest.

    Args:
        label: what the tensors came from, for errors.
    """
    with torch.device("meta"):
        model = StripedHyena2(source.config)
        for name, module in model.named_modules():
            if isinstance(module, InputProjection) and f"{name}.fp8_scales" in source.tensors:
                module.fp8_scales = torch.empty(2, dtype=torch.float32)
    check_tensors(source.tensors, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, label)
    packed = _pack(model, source) if fp8_weights else {}
    dtypes = _dtypes(source.tensors, dtype)
    placement = _placement(source.config, source.tensors, dtypes, devices, packed)

    def placed(name: str, lazy: LazyTensor) -> dict[str, Tensor]:
        tensor = copied(lazy, placement.of(name), dtypes[name])
        return packed[name].kept(tensor, name.removesuffix("weight")) if name in packed else {name: tensor}

    every = map_tensors(placed, source.tensors)
    model.load_state_dict({name: tensor for some in every for name, tensor in some.items()}, assign=True)
    for layer, block in enumerate(model.blocks):
        if isinstance(block.mixer, Attention) and block.mixer.inv_freq.is_meta:
            block.mixer.inv_freq = rotary_frequencies(source.config).to(placement.of(f"blocks.{layer}.mixer.inv_freq"))
    model.eval().use_precision(Precision.AUTO)
    if placement.streamed or packed:
        model.requires_grad_(False)
    if placement.streamed:
        stream(model.blocks, placement.streamed, placement.home)
    follow(model.blocks, placement)
    return model


def _pack(model: StripedHyena2, source: Model) -> dict[str, PackedLinear]:
    """Let an empty model keep its weights in FP8; the layers that do, by the names of the weights that they take."""
    pack_layers(model.blocks, trained_in_fp8=source.config.fp8_input_projections)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    for name, layer in layers.items():
        if isinstance(layer, PackedInputProjection) and layer.fp8_scales is not None:  # by which its weight is rounded
            layer.fp8_scales = source.tensors[f"{name}.fp8_scales"].read().clone()
    return {f"{name}.weight": layer for name, layer in layers.items()}


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Write a model as a folder in our format; a model folder of that name is replaced in one step.

    Adapters (`sh2.lora`) are merged into the weights that are written; the model itself keeps them apart.

    Raises:
        Sh2Error: the folder holds something else than a model, or cannot be written.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise TypeError(f"a {type(model).__name__} has no ModelConfig to save")
    if is_packed(model):
        raise Sh2Error("a model whose weights are kept in FP8 is not saved: they are rounded").hint(
            "load it with its weights as they are"
        )
    tensors = {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, read) for name, (tensor, read) in plain_state(model).items()
    }
    write_model_folder(Path(folder), config, tensors)


def _in_product(name: str) -> bool:
    """Whether a tensor of ours goes into a matrix product, which takes no mixture of dtypes."""
    return name.endswith((".weight", ".bias"))


def _product_dtype(tensors: Tensors) -> torch.dtype | None:
    """The dtype that holds every weight of a product: a file may have its embeddings in another than the rest."""
    dtypes = [lazy.dtype for name, lazy in tensors.items() if _in_product(name)]
    return reduce(torch.promote_types, dtypes) if dtypes else None


def _dtypes(tensors: Tensors, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype of every tensor, if the weights are wanted in one; None keeps that of the file where it can."""
    product = dtype or _product_dtype(tensors)
    wanted = {name: (product if _in_product(name) else dtype) or lazy.dtype for name, lazy in tensors.items()}
    return {name: torch.float32 if stays_float32(name) else chosen for name, chosen in wanted.items()}


def _placement(
    config: ModelConfig,
    tensors: Tensors,
    dtypes: dict[str, torch.dtype],
    devices: Sequence[torch.device],
    packed: Collection[str],
) -> Placement:
    """Where each tensor goes, from what the tensors will weigh."""
    sizes, rest = [0] * config.num_layers, 0
    in_fp8 = config.fp8_input_projections
    code_size = 2 if in_fp8 and fp8_lacks(devices[0], config.width) else 1  # as `InputProjection` keeps them
    for name, lazy in tensors.items():
        numbers = math.prod(lazy.shape)
        size = numbers + 4 * lazy.shape[0] if name in packed else numbers * dtypes[name].itemsize
        if not name.startswith("blocks."):
            rest += size
            continue
        layer = int(name.split(".")[1])
        sizes[layer] += size
        if (
            in_fp8
            and name not in packed
            and name.endswith("mixer.input.weight")
            and config.kinds[layer] is not MixerKind.ATTENTION
        ):
            sizes[layer] += numbers * code_size
    return place(config, sizes, rest, devices, [free_bytes(device) for device in devices])


def _device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise Sh2Error(f"device `{device}` cannot be used: {reason}").hint("`evo doctor` shows what is there") from None
    return device
