"""One query a row against a long cache, in plain torch: the entries that a row does not have are masked."""

# B rows, S places of the cache, H heads, J key-value heads, C channels a head

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.fp8.reference import pack, unpack
from kernels.rotary.reference import rotate


def attention_step(
    q_BHC: Tensor,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None = None,
    value_units_BSJ: Tensor | None = None,
    begin_B: Tensor | None = None,
    end_B: Tensor | None = None,
) -> Tensor:
    """Attend from one query a row to the entries begin_B[b] .. end_B[b] - 1 of its cache; see `attention_step`."""
    if end_B is not None and end_B.device.type == "cpu":
        # what nobody has need not be read; elsewhere, looking at the ends would wait for the device
        stop = int(end_B.max())
        end_B = None if bool((end_B == stop).all()) else end_B
        keys_BSJC, values_BSJC = keys_BSJC[:, :stop], values_BSJC[:, :stop]
        if key_units_BSJ is not None and value_units_BSJ is not None:
            key_units_BSJ, value_units_BSJ = key_units_BSJ[:, :stop], value_units_BSJ[:, :stop]
    wide = q_BHC
    if key_units_BSJ is not None and value_units_BSJ is not None:
        dtype = key_units_BSJ.dtype  # float32, or float64 where this is the oracle
        keys_BSJC = unpack(keys_BSJC, key_units_BSJ, dtype)
        values_BSJC = unpack(values_BSJC, value_units_BSJ, dtype)
        wide = q_BHC.to(dtype)
    y_BH1C = F.scaled_dot_product_attention(
        wide[:, :, None],
        keys_BSJC.transpose(1, 2),
        values_BSJC.transpose(1, 2),
        attn_mask=_mask(keys_BSJC, begin_B, end_B),
        enable_gqa=q_BHC.shape[1] != keys_BSJC.shape[2],
    )
    return y_BH1C[:, :, 0].to(q_BHC.dtype)


def append(
    z_BE: Tensor,
    frequencies: Tensor,
    interpolation: float,
    keys_BSJC: Tensor,
    values_BSJC: Tensor,
    key_units_BSJ: Tensor | None,
    value_units_BSJ: Tensor | None,
    end_B: Tensor,
) -> Tensor:
    """Write one token a row behind its last, and return its rotated query q_BHC; see `attention_append`."""
    B, S, J, C = keys_BSJC.shape
    H = z_BE.shape[1] // C - 2 * J
    q_BHC, k_BJC, v_BJC = z_BE.unflatten(1, (-1, C)).split([H, J, J], dim=1)
    angles_B1c = (end_B.float() / interpolation)[:, None, None] * frequencies
    cos, sin = angles_B1c.cos(), angles_B1c.sin()
    k_BJC = rotate(k_BJC, cos, sin)
    end_B.add_(1).clamp_(max=S)
    place = torch.arange(B, device=end_B.device), end_B - 1
    if key_units_BSJ is not None and value_units_BSJ is not None:
        k_BJC, key_units_BSJ[place] = pack(k_BJC)
        v_BJC, value_units_BSJ[place] = pack(v_BJC)
    keys_BSJC[place], values_BSJC[place] = k_BJC.to(keys_BSJC.dtype), v_BJC.to(values_BSJC.dtype)
    return rotate(q_BHC, cos, sin)


def _mask(keys_BSJC: Tensor, begin_B: Tensor | None, end_B: Tensor | None) -> Tensor | None:
    """bool [B, 1, 1, S]: which entries each row sees; None if all."""
    place_S = torch.arange(keys_BSJC.shape[1], device=keys_BSJC.device)
    mask_B11S = None if begin_B is None else place_S >= begin_B[:, None, None, None]
    if end_B is None:
        return mask_B11S
    before_B11S = place_S < end_B[:, None, None, None]
    return before_B11S if mask_B11S is None else mask_B11S & before_B11S
