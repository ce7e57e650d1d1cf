"""Linear layers whose weights are kept in FP8: half the memory of bfloat16, and half the time to read them.

Numbers are computed as without: a weight is E4M3 codes with a float32 unit for each output, and what they stand for is
multiplied in the dtype of the input. That rounds every weight to three bits of mantissa, which changes what a model
says: nothing does it unless it is asked to, and every output says so.

For inference alone. Knows nothing of files.
"""

# D inputs, E outputs; X any leading dimensions

from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels import Backend, pack, packed_linear, unpack
from sh2.precision import Float32Kept

ROWS = 1024  # that are packed at once: what is made on the way is float32


class PackedLinear(Float32Kept):
    """A linear layer whose weight is in FP8; only its bias has another dtype."""

    float32_names: ClassVar[tuple[str, ...]] = ("units",)

    backend: Backend = Backend.AUTO  # set by `StripedHyena2.use_backend`

    codes: Tensor
    units: Tensor

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("codes", torch.empty(outputs, inputs, dtype=torch.uint8, device=device))
        self.register_buffer("units", torch.empty(outputs, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.empty(outputs, device=device), requires_grad=False) if bias else None

    def forward(self, x_XD: Tensor) -> Tensor:
        return packed_linear(x_XD, self.codes, self.units, self.bias, backend=self.backend)

    def kept(self, weight_ED: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """The buffers that keep a weight, by name."""
        return {prefix + name: tensor for name, tensor in self._kept(weight_ED).items()}

    def _kept(self, weight_ED: Tensor) -> dict[str, Tensor]:
        parts = [pack(rows) for rows in weight_ED.split(ROWS)]
        codes, units = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return {"codes": codes, "units": units}

    def keep(self, weight_ED: Tensor) -> None:
        """Keep a weight from now on."""
        for name, tensor in self.kept(weight_ED).items():
            setattr(self, name, tensor)

    def numbers(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [E, D] as it is multiplied."""
        return unpack(self.codes, self.units, dtype)


def is_packed(model: nn.Module) -> bool:
    """Whether a model keeps weights in FP8."""
    return any(isinstance(module, PackedLinear) for module in model.modules())
