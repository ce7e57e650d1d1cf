"""What a model computed, on its way to whoever asked: numbers, or an error that says that they are none."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sh2.errors import Sh2Error


def fetched(found: Tensor) -> NDArray[np.float32]:
    """The values of a tensor, on the host.

    Raises:
        Sh2Error: some are NaN.
    """
    values = found.cpu()
    if bool(torch.isnan(values).any()):
        raise no_numbers()
    return values.numpy()


def no_numbers() -> Sh2Error:
    """What is raised where a model computes NaN."""
    return Sh2Error("the model computes NaN: its weights are damaged, or overflow in this precision").hint(
        "run `evo selftest --model ...`, or try --precision fp32"
    )
