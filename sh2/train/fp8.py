"""Training with the products of linear layers in FP8: the forward one, and those of both gradients.

Every operand (input, weight, gradient of the output) is scaled by its own largest value of that moment, one scale for
all of it, and rounded once to E4M3; products are summed in float32. Nothing is remembered from step to step, so a run
that goes on is the run that never stopped. What is trained stays as it was: weights in float32, under the same names.
The embedding, the logits, filters and attention are not touched.

Hardware multiplies along rows alone, and each operand is in two products, along each of its dimensions:
`quantise_both` writes both orders in one pass. Of the input only the transposed codes are kept for the backward pass, a
byte a number. Of the weight none are, but the weight itself, which is there anyhow, is rounded again: where processes
share the weights (FSDP), kept codes would be the whole model in each of them.

Gradients are E4M3 too, not E5M2, which Transformer Engine takes: with a scale of the moment, a bit of mantissa is worth
more than the range. In the 35 layers of the model that comes with the program, relative errors of dx and dW are 0.025
and 0.022 (medians) against 0.039 and 0.034, and smaller in every one; of heavy-tailed random gradients (Student's t of
2 degrees, or tokens of lognormal sizes with a sigma of 2) 0.035 to 0.040 against 0.056 to 0.060. E5M2 is better for one
thing: a token whose gradients are all below the largest number by 2^18 keeps them. To dW such a token adds less than
the rounding of others takes, and the stream beside the layer brings it its gradient all the same.

The sums of y and dx are fast, as inference takes them: Hopper then keeps about 14 bits, and there are a few thousand
terms. Those of dW are not: a sum over all tokens of a batch would lose what is added last.
"""

# B batch, L length, M tokens of all rows, P = M up to a multiple of 16, K inputs, N outputs, S what is summed over

from typing import Any

import torch
from torch import Tensor, nn

from kernels import FP8_TILE, quantise, quantise_both, scale_of
from sh2.errors import Sh2Error
from sh2.fp8 import InputProjection, fp8_lacks, multiply
from sh2.model import StripedHyena2


def check_fp8_linears(model: StripedHyena2, device: torch.device) -> None:
    """Refuse what cannot train so.

    Raises:
        Sh2Error: the device has no FP8 products, or a layer's sizes are not multiples of 16.
    """
    if lacks := fp8_lacks(device, model.config.width):
        raise Sh2Error(f"FP8 linears cannot run here: {lacks}").hint("train without `--fp8-linears`")
    _check_sizes(model)


def use_fp8_linears(model: StripedHyena2, device: torch.device, *, emulate: bool = False) -> None:
    """Let the linear layers of all blocks take their products in FP8. Do this before compiling.

    Args:
        device: where it will train; the model may be elsewhere yet.
        emulate: round alike and multiply in wider numbers, on any device.

    Raises:
        Sh2Error: as `check_fp8_linears`; emulated, of sizes alone.
    """
    if emulate:
        _check_sizes(model)
    else:
        check_fp8_linears(model, device)
    for _, layer in _linears(model):
        # tensors, names and hooks stay: only `forward` is another
        layer.__class__ = Fp8InputProjection if isinstance(layer, InputProjection) else Fp8Linear
        assert isinstance(layer, Fp8Linear)
        layer.emulate = emulate


class Fp8Linear(nn.Linear):
    """A linear layer that trains with FP8 products."""

    emulate: bool = False

    def forward(self, x_BLK: Tensor) -> Tensor:
        device = x_BLK.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BLK.dtype
        keep = torch.is_grad_enabled() and self.weight.requires_grad
        y_MN: Tensor = _Product.apply(x_BLK.flatten(0, -2), self.weight, dtype, keep, self.emulate)
        y_BLN = y_MN.unflatten(0, x_BLK.shape[:-1])
        return y_BLN if self.bias is None else y_BLN + self.bias.to(dtype)


class Fp8InputProjection(Fp8Linear, InputProjection):
    """Likewise the input projection of a hyena mixer, which may have scales of its own, for when it runs in FP8."""


class _Product(torch.autograd.Function):
    """y = x W^T, and its gradients, of operands rounded to E4M3."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor, dtype: torch.dtype, keep: bool, emulate: bool) -> Tensor:
        """dtype: of y. keep: the weight has a gradient."""
        narrow_NK = weight_NK.to(dtype)  # as a product under autocast takes it
        x_scale, weight_scale = _scale(x_MK), _scale(narrow_NK)
        if keep:
            codes_MK, codes_KP = quantise_both(x_MK, x_scale)
            ctx.save_for_backward(weight_NK, weight_scale, codes_KP, x_scale)
        else:
            codes_MK, _ = quantise(x_MK, x_scale)
            ctx.save_for_backward(weight_NK, weight_scale)
        ctx.x_dtype, ctx.dtype, ctx.emulate = x_MK.dtype, dtype, emulate
        codes_NK, _ = quantise(narrow_NK, weight_scale)
        return _product(codes_MK, codes_NK, x_scale, weight_scale, dtype, fast=True, emulate=emulate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weight_NK, weight_scale, *kept = ctx.saved_tensors
        dy_MN, dx_MK, dweight_NK = grads[0], None, None
        dy_scale = _scale(dy_MN)
        codes_MN, codes_NP = quantise_both(dy_MN, dy_scale)
        if ctx.needs_input_grad[0]:
            _, codes_KN = quantise_both(weight_NK.to(ctx.dtype), weight_scale)
            dx_MK = _product(codes_MN, codes_KN, dy_scale, weight_scale, ctx.x_dtype, fast=True, emulate=ctx.emulate)
        if ctx.needs_input_grad[1]:
            codes_KP, x_scale = kept
            dweight_NK = _product(
                codes_NP, codes_KP, dy_scale, x_scale, weight_NK.dtype, fast=False, emulate=ctx.emulate
            )
        return dx_MK, dweight_NK, None, None, None


def _scale(x_MC: Tensor) -> Tensor:
    # row by row first: so a compiler can find the maxima where it makes the rows
    return scale_of(x_MC.abs().amax(dim=-1).amax())


def _product(
    left_MS: Tensor,
    right_NS: Tensor,
    left_scale: Tensor,
    right_scale: Tensor,
    dtype: torch.dtype,
    *,
    fast: bool,
    emulate: bool,
) -> Tensor:
    """The product of codes over their scales [M, N]."""
    undo = left_scale.reciprocal(), right_scale.reciprocal()
    if not emulate:
        return multiply(left_MS, right_NS, *undo, dtype=dtype, fast=fast)
    sums_MN = left_MS.double() @ right_NS.double().t()  # of float64, which autocast does not round
    return (sums_MN * (undo[0] * undo[1])).to(dtype)


def _check_sizes(model: StripedHyena2) -> None:
    for name, layer in _linears(model):
        if layer.in_features % FP8_TILE or layer.out_features % FP8_TILE:
            raise Sh2Error(
                f"FP8 linears need sizes that are multiples of {FP8_TILE}: `{name}` is {layer.in_features} by "
                f"{layer.out_features}"
            ).hint("change `width` or `mlp_width`, or train without `--fp8-linears`")


def _linears(model: StripedHyena2) -> list[tuple[str, nn.Linear]]:
    return [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("blocks.")
    ]
