"""Models to time: of a named shape with random weights, or as they are stored."""

import torch

from sh2.config import ModelConfig
from sh2.fp8 import Precision, pack_layers
from sh2.initialize import initialize
from sh2.model import StripedHyena2
from sh2.packed import PackedLinear


def random_model(config: ModelConfig, *, device: str, dtype: torch.dtype, fp8_weights: bool = False) -> StripedHyena2:
    """A model with the weights that training would begin with, made in its dtype where it runs.

    Memory holds the model and one tensor more, however large it is.

    Args:
        fp8_weights: keep those of linear layers in FP8; then they are others, of about the same size.
    """
    with torch.device("meta"):
        model = StripedHyena2(config).to(dtype)
        if fp8_weights:
            pack_layers(model.blocks, trained_in_fp8=config.fp8_input_projections)
            model.to(dtype)
    model = model.to_empty(device=device)
    initialize(model, config, seed=0)
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            layer.keep(
                torch.randn(layer.out_features, layer.in_features, device=device, dtype=dtype) / config.width**0.5
            )
    if fp8_weights:
        model.requires_grad_(False).use_precision(Precision.FP8_WEIGHTS)
    return model.eval()
