"""Models to time: of a named shape with random weights, or as they are stored."""

import torch

from sh2.config import ModelConfig
from sh2.initialize import initialize
from sh2.model import StripedHyena2


def random_model(config: ModelConfig, *, device: str, dtype: torch.dtype) -> StripedHyena2:
    """A model with the weights that training would begin with, made in its dtype where it runs.

    Memory holds the model and one tensor more, however large it is.
    """
    with torch.device("meta"):
        model = StripedHyena2(config).to(dtype)
    model = model.to_empty(device=device)
    initialize(model, config, seed=0)
    return model.eval()
