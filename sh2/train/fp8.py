"""Training with the products of linear layers in FP8 (E4M3), by torchao: forward, and the gradients of what goes in.

Every row of an operand is scaled by its own largest value at every step. The gradients of weights are products in
bfloat16: in FP8 they would need both operands once more, transposed, and that costs more time than they save. What is
trained stays as it was: weights in float32, under the same names. The embedding, the logits, filters and attention are
not touched.
"""

from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn

from sh2.errors import Sh2Error
from sh2.fp8 import fp8_lacks
from sh2.model import StripedHyena2

_RECIPE = "rowwise_with_gw_hp"  # of torchao
_TILE = 16  # FP8 products take sizes that are multiples of this


def check_fp8_linears(model: StripedHyena2, device: torch.device) -> None:
    """Refuse what cannot train so.

    Raises:
        Sh2Error: torchao is not installed, the device has no FP8 products, or a layer's sizes are not multiples of 16.
    """
    if find_spec("torchao") is None:
        raise Sh2Error("FP8 linears need the package torchao, which is not installed").hint(
            "install it with `pip install 'evo-sh2[float8]'`, or train without `--fp8-linears`"
        )
    if lacks := fp8_lacks(device, model.config.width):
        raise Sh2Error(f"FP8 linears cannot run here: {lacks}").hint("train without `--fp8-linears`")
    for name, layer in _linears(model):
        if layer.in_features % _TILE or layer.out_features % _TILE:
            raise Sh2Error(
                f"FP8 linears need sizes that are multiples of {_TILE}: `{name}` is {layer.in_features} by "
                f"{layer.out_features}"
            ).hint("change `width` or `mlp_width`, or train without `--fp8-linears`")


def use_fp8_linears(model: StripedHyena2, device: torch.device, *, emulate: bool = False) -> None:
    """Let the linear layers of all blocks take their products in FP8. Do this before compiling.

    Args:
        device: where it will train; the model may be elsewhere yet.
        emulate: round alike and multiply in wider numbers, on any device.

    Raises:
        Sh2Error: as `check_fp8_linears`, unless emulated.
    """
    if not emulate:
        check_fp8_linears(model, device)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    wanted = {name for name, _ in _linears(model)}
    recipe = replace(Float8LinearConfig.from_recipe_name(_RECIPE), emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name in wanted, config=recipe)


def _linears(model: StripedHyena2) -> list[tuple[str, nn.Linear]]:
    return [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("blocks.")
    ]
