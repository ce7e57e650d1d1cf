"""FP8 products as Transformer Engine takes them, without it: rounding, scales, the product, and the layer that uses it.

The published models of 1B, 20B and 40B parameters were trained with the input projections of their hyena mixers in FP8,
and are wrong without. Input and weight are scaled, rounded to E4M3, multiplied with float32 accumulation, and scaled
back. The scales are the checkpoint's where it has them (delayed scaling: numbers that training left, the same for every
input). Where it has none they are taken from the values at hand (current scaling): one for the whole weight, which
never changes, and one a token for the input. Not one a tensor, as in training: a score would then depend on its batch
mates and on where a chunk ends, and a token on those after it. A token's own scale depends on nothing but that token.

Two ways of multiplying give the same: `fp8` on hardware, `fp8-emulated` anywhere. Products of E4M3 numbers are exact in
float32, so only the order of the sums differs, and how wide they are: as Transformer Engine does in the forward pass,
hardware sums fast, which on Hopper keeps about 14 bits. Published weights are used to that.

Knows nothing of files.
"""

# B batch, L length, D width, E outputs, M tokens of all rows

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from kernels import FP8_TILE, quantise, rescale, scale_of
from sh2.errors import Sh2Error
from sh2.packed import ROWS, PackedLinear, is_packed
from sh2.precision import Float32Kept

_CAPABILITY = (8, 9)  # of the first devices with FP8 products


class Precision(StrEnum):
    """In which numbers a model runs."""

    AUTO = "auto"  # as the model was trained
    BF16 = "bf16"
    FP32 = "fp32"
    FP8 = "fp8"  # input projections of the hyena mixers alone, on hardware; the rest in the model's dtype
    FP8_EMULATED = "fp8-emulated"  # the same, rounded alike and multiplied in wider numbers
    FP8_WEIGHTS = "fp8-weights"  # as `auto`, of a model whose linear layers were loaded with their weights in FP8


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """A tensor in FP8: codes / scale are its values."""

    codes: Tensor  # float8_e4m3fn; float16, which holds the same numbers, where only the emulation uses them
    scale: Tensor  # float32; one for all, or one for each row of the last dimension [..., 1]

    @classmethod
    def of(cls, x: Tensor, scale: Tensor | None = None) -> Self:
        """Round x * scale to E4M3; without a scale, each row takes its own."""
        return cls(**dict(zip(("codes", "scale"), quantise(x, scale), strict=True)))


def fp8_linear(
    x_BLD: Tensor, weight_ED: Quantised, bias_E: Tensor | None, input_scale: Tensor | None, mode: Precision
) -> Tensor:
    """A linear layer whose product is that of FP8 operands; the bias is added to the rounded product.

    Args:
        x_BLD: any floating dtype, any number of leading dimensions; the result has the same.
        weight_ED: one scale for all of it.
        input_scale: one for all of x, float32; None takes each token's own.
        mode: `fp8` (see `fp8_lacks`) or `fp8-emulated`.
    """
    codes_BLD, scale = quantise(x_BLD, input_scale)
    codes_MD = codes_BLD.flatten(0, -2)
    undo = scale.reciprocal(), weight_ED.scale.reciprocal()
    if mode is Precision.FP8 and x_BLD.dtype is torch.bfloat16 and undo[0].numel() == 1:
        y_ME = multiply(codes_MD, weight_ED.codes, *undo, dtype=torch.bfloat16)
        y_ME = y_ME if bias_E is None else y_ME + bias_E
    else:
        one = torch.ones_like(undo[1])
        sums_ME = (
            multiply(codes_MD, weight_ED.codes, one, one, dtype=torch.float32)
            if mode is Precision.FP8
            else _emulate(codes_MD, weight_ED.codes)
        )
        y_ME = rescale(sums_ME, undo[0].reshape(-1, 1) * undo[1], bias_E, x_BLD.dtype)
    return y_ME.unflatten(0, x_BLD.shape[:-1])


def multiply(
    x_MD: Tensor, weight_ED: Tensor, undo_x: Tensor, undo_weight: Tensor, *, dtype: torch.dtype, fast: bool = True
) -> Tensor:
    """x W^T on hardware, of codes, times what undoes their scales; rows are padded to what it takes."""
    rows = x_MD.shape[0]
    if lacking := -rows % FP8_TILE:
        x_MD = F.pad(x_MD.view(torch.uint8), (0, 0, 0, lacking)).view(torch.float8_e4m3fn)
    y_ME: Tensor = torch._scaled_mm(
        x_MD,
        weight_ED.t(),
        scale_a=undo_x.reshape(()),
        scale_b=undo_weight.reshape(()),
        out_dtype=dtype,
        use_fast_accum=fast,
    )
    return y_ME[:rows]


def _emulate(x_MD: Tensor, weight_ED: Tensor) -> Tensor:
    """The product of codes, float32. On a GPU as float16, which holds them all and has fast products everywhere."""
    if x_MD.is_cuda:
        return torch.mm(x_MD.half(), weight_ED.half().t(), out_dtype=torch.float32)
    return F.linear(x_MD.float(), weight_ED.float())


class InputProjection(Float32Kept, nn.Linear):
    """The input projection of a hyena mixer: a linear layer that can run in FP8.

    `precision` is a choice of the machine's, set by `StripedHyena2.use_precision`; no file has it. Gradients are those
    of the product in the layer's dtype.
    """

    float32_names = ("fp8_scales",)

    precision: Precision | None = None  # None runs in the layer's dtype
    fp8_scales: Tensor | None  # of the input and of the weight [2], float32, as training left them; None: not stored

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device | str | None = None) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device)
        self.register_buffer("fp8_scales", None)
        self._kept: tuple[object, Quantised] | None = None

    def forward(self, x_BLD: Tensor) -> Tensor:
        if self.precision is None:
            return super().forward(x_BLD)
        with torch.no_grad():
            input_scale = None if self.fp8_scales is None else self.fp8_scales[0]
            y_BLE = fp8_linear(x_BLD, self.quantised_weight(), self.bias, input_scale, self.precision)
        if not torch.is_grad_enabled():
            return y_BLE
        smooth_BLE = super().forward(x_BLD)
        return y_BLE + (smooth_BLE - smooth_BLE.detach())

    def quantised_weight(self) -> Quantised:
        """The weight in FP8, kept until it or its scale changes: a byte more for each of its numbers, emulated two."""
        tensors = [self.weight] if self.fp8_scales is None else [self.weight, self.fp8_scales]
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        key = self.precision, [(tensor.data_ptr(), tensor.dtype) for tensor in tensors], versions
        if self._kept is None or self._kept[0] != key:
            scale = scale_of(self.weight.abs().amax()) if self.fp8_scales is None else self.fp8_scales[1]
            weight_ED = Quantised.of(self.weight.detach(), scale)
            if self.precision is Precision.FP8_EMULATED:  # widening FP8 takes longer than a token's product
                weight_ED = replace(weight_ED, codes=weight_ED.codes.half())
            if isinstance(weight_ED.codes, FakeTensor):  # a trial without values
                return weight_ED
            self._kept = key, weight_ED
        return self._kept[1]

    def forget(self) -> None:
        """Give the memory of the weight in FP8 back."""
        self._kept = None


class PackedInputProjection(PackedLinear):
    """The input projection of a model that was trained with it in FP8, whose weight is kept as it runs, and only so.

    Its codes have one scale for all of them, and those of a run from the whole weight are the same.
    """

    float32_names = ("units", "fp8_scales", "weight_scale")

    precision: Precision | None = None  # None runs in the dtype of the input
    fp8_scales: Tensor | None  # as in `InputProjection`
    weight_scale: Tensor

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device | str | None = None) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device)
        self.register_buffer("fp8_scales", None)
        self.register_buffer("weight_scale", torch.ones((), dtype=torch.float32, device=device))

    def forward(self, x_XD: Tensor) -> Tensor:
        if self.precision is None:
            return super().forward(x_XD)
        input_scale = None if self.fp8_scales is None else self.fp8_scales[0]
        weight_ED = Quantised(codes=self.codes.view(torch.float8_e4m3fn), scale=self.weight_scale)
        return fp8_linear(x_XD, weight_ED, self.bias, input_scale, self.precision)

    def _kept(self, weight_ED: Tensor) -> dict[str, Tensor]:
        scales = self.fp8_scales
        stored = scales is not None and not scales.is_meta
        scale = scales[1] if scales is not None and stored else scale_of(weight_ED.abs().amax())
        scale = scale.to(weight_ED.device, torch.float32)
        codes = torch.cat([quantise(rows, scale)[0] for rows in weight_ED.split(ROWS)]).view(torch.uint8)
        units = scale.reciprocal().expand(self.out_features).contiguous()
        return {"codes": codes, "units": units, "weight_scale": scale}


def pack_layers(blocks: nn.Module, *, trained_in_fp8: bool) -> None:
    """Let the linear layers of blocks keep their weights in FP8; of layers without values, those to come.

    Args:
        trained_in_fp8: the input projections run in FP8, and keep their weights as they run.
    """
    for module in list(blocks.modules()):
        for name, layer in module.named_children():
            if not isinstance(layer, nn.Linear):
                continue
            projection = layer if isinstance(layer, InputProjection) and trained_in_fp8 else None
            kind = PackedLinear if projection is None else PackedInputProjection
            sizes = layer.in_features, layer.out_features
            packed = kind(*sizes, bias=layer.bias is not None, device=layer.weight.device)
            if projection is not None and isinstance(packed, PackedInputProjection):
                packed.fp8_scales = projection.fp8_scales
            if not layer.weight.is_meta:
                packed.keep(layer.weight.detach())
                if layer.bias is not None:
                    packed.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
            setattr(module, name, packed)


def fp8_lacks(device: torch.device, width: int) -> str | None:
    """Say why FP8 products of this width cannot run on a device; None if they can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the device `{device.type}` has no FP8 products"
    if (capability := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        name, has = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        return f"{name} has no FP8 products: its compute capability is {has}, they need 8.9"
    return f"FP8 products need widths in multiples of {FP8_TILE}, not {width}" if width % FP8_TILE else None


def choose_precision(model: nn.Module, precision: str, *, width: int, trained_in_fp8: bool) -> None:
    """Set in which numbers a model runs; `StripedHyena2.use_precision` says what each is.

    Raises:
        Sh2Error: there is no such precision, or the device has no FP8 products.
    """
    if precision not in list(Precision):
        raise Sh2Error(f"unknown precision `{precision}`").hint(f"use {', '.join(Precision)}")
    chosen: Precision | None = Precision(precision)
    lacks = fp8_lacks(next(model.parameters()).device, width)
    packed = is_packed(model)
    if chosen is Precision.FP8_WEIGHTS and not packed:
        raise Sh2Error("this model was loaded with its weights as they are").hint(
            "weights are kept in FP8 from the start: `sh2.load(..., fp8_weights=True)`, or --precision fp8-weights"
        )
    if packed and chosen not in (Precision.AUTO, Precision.FP8_WEIGHTS):
        raise Sh2Error(f"a model whose weights are kept in FP8 cannot run in {chosen}: their numbers are rounded").hint(
            "load it with its weights as they are"
        )
    if chosen is Precision.FP8 and lacks:
        raise Sh2Error(f"precision fp8 cannot run here: {lacks}").hint("fp8-emulated rounds alike on any device")
    if chosen in (Precision.AUTO, Precision.FP8_WEIGHTS):
        chosen = (Precision.FP8_EMULATED if lacks else Precision.FP8) if trained_in_fp8 else None
    elif chosen in _DTYPES:
        model.to(_DTYPES[chosen])
        chosen = None
    for module in model.modules():
        if isinstance(module, InputProjection | PackedInputProjection):
            module.precision = chosen


_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}


def precision_of(model: nn.Module) -> str:
    """In which numbers a model runs: `fp8-weights`, `fp8`, `fp8-emulated`, `bf16`, `fp32`, or another dtype's name."""
    if is_packed(model):
        return Precision.FP8_WEIGHTS
    if (products := products_of(model)) is not None:
        return products
    dtype = next(model.parameters()).dtype
    return next((name for name, known in _DTYPES.items() if known is dtype), str(dtype).removeprefix("torch."))


def products_of(model: nn.Module) -> Precision | None:
    """How the input projections of a model run in FP8, `fp8` or `fp8-emulated`; None if they do not."""
    projections = (part for part in model.modules() if isinstance(part, InputProjection | PackedInputProjection))
    return next((part.precision for part in projections if part.precision is not None), None)
