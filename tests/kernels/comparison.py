"""How Triton kernels are compared with their definition: outputs, states and the gradient of every input."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.kernels import definitions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUTPUTS = ("y", "new past", "new state")

Values = dict[str, Tensor]
Call = Callable[[Values], tuple[Tensor, ...]]  # gives y and the two tensors of the state


def outputs_and_gradients(call: Call, values: Values) -> Values:
    """What a call returns, and the gradients of all inputs from all outputs."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items() if value.numel()}
    outputs = dict(zip(OUTPUTS, call({**values, **leaves}), strict=True))
    generator = torch.Generator().manual_seed(0)
    cotangents = {n: torch.randn(o.shape, generator=generator).bfloat16().to(o.device) for n, o in outputs.items()}
    used = [name for name, output in outputs.items() if output.requires_grad]
    gradients = torch.autograd.grad(
        [outputs[name] for name in used],
        list(leaves.values()),
        [cotangents[name].to(outputs[name].dtype) for name in used],
    )
    return outputs | {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def wide(values: Values) -> Values:
    """The same values in float64."""
    return {name: value.double() for name, value in values.items()}


def check(call: Call, definition: Call, values: Values, tolerance: float) -> None:
    """Compare a call, all outputs and gradients, with its definition in float64: every tensor, and every element."""
    got = outputs_and_gradients(call, values)
    want = outputs_and_gradients(definition, wide(values))
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert definitions.relative_error(got[name], value) < tolerance, name
        assert worst_element(got[name], value) < 16 * tolerance, name


def worst_element(got: Tensor, want: Tensor) -> float:
    """The largest error of an element, over its size and the root mean square of all."""
    want = want.detach().double()
    if not want.numel():
        return 0.0
    return float(((got.detach() - want).abs() / (want.abs() + want.square().mean().sqrt() + 1e-30)).max())


def in_pieces(call: Call, values: Values, cuts: list[int]) -> tuple[Tensor, ...]:
    """The output and the last state of a sequence cut into pieces, each continuing the one before."""
    piece, outputs = dict(values), []
    for start, stop in zip([0, *cuts], [*cuts, values["z"].shape[1]], strict=True):
        piece["z"] = values["z"][:, start:stop]
        y, piece["past"], piece["state"] = call(piece)
        outputs.append(y)
    return torch.cat(outputs, dim=1), piece["past"], piece["state"]


def _beside_nan(z: Tensor, axis: int) -> Tensor:
    return torch.cat([torch.full_like(z, torch.nan), z, torch.full_like(z, torch.nan)], dim=axis).chunk(3, dim=axis)[1]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "part of wider rows": lambda z: _beside_nan(z, 2),
    "part of longer sequences": lambda z: _beside_nan(z, 1),
    "length last": lambda z: z.mT.contiguous().mT,
    "batch second": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
}
