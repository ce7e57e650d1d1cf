"""The state after a few rows without their outputs: for who hands states on before the rows between have been run."""

# B batch, L rows, E = 3D projected channels, F featurizer taps, K inner taps, P = F - 1, R = K - 1
# V = 2D: the thirds of keys and of values

from typing import Any

import torch
from torch import Tensor

from kernels.hyena_fir.reference import FirState


def hyena_fir_state(z_BLE: Tensor, featurizer_EF: Tensor, featurizer_bias_E: Tensor | None, taps: int) -> FirState:
    """Return the state that `hyena_fir` returns after rows of a projection, which it makes of the last ones alone.

    In plain torch, with a backward of its own: a dozen small operations, where to run the operator and autograd over
    so few rows is to wait for one long walk each.

    Args:
        z_BLE: the projection, of at least F + taps - 2 rows.
        taps: how many the inner filter has.
    """
    past_BPE, inner_BRD = _State.apply(z_BLE, featurizer_EF, featurizer_bias_E, taps)
    return FirState(past_BPE, inner_BRD)


class _State(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_BLE: Tensor, featurizer_EF: Tensor, bias_E: Tensor | None, taps: int
    ) -> tuple[Tensor, Tensor]:
        (L, E), F, R = z_BLE.shape[1:], featurizer_EF.shape[1], taps - 1
        z_BLV = z_BLE[..., E // 3 :].to(torch.promote_types(z_BLE.dtype, torch.float32))
        taps_VF = featurizer_EF[E // 3 :].to(z_BLV.dtype)
        f_BRV = z_BLV[:, L - R :] * taps_VF[:, 0]
        for j in range(1, F):
            f_BRV = torch.addcmul(f_BRV, z_BLV[:, L - R - j : L - j], taps_VF[:, j])
        if bias_E is not None:
            f_BRV += bias_E[E // 3 :]
        keys_BRD, values_BRD = f_BRV.chunk(2, dim=2)
        ctx.biased = bias_E is not None
        ctx.save_for_backward(z_BLE, featurizer_EF, keys_BRD, values_BRD)
        return z_BLE[:, L - F + 1 :].clone(), keys_BRD * values_BRD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        dpast_BPE, dinner_BRD = grads
        z_BLE, featurizer_EF, keys_BRD, values_BRD = ctx.saved_tensors
        (L, E), F, R = z_BLE.shape[1:], featurizer_EF.shape[1], keys_BRD.shape[1]
        df_BRV = torch.cat([dinner_BRD * values_BRD, dinner_BRD * keys_BRD], dim=2)
        dz_BLE = torch.zeros_like(z_BLE, dtype=df_BRV.dtype)
        for j in range(F):
            dz_BLE[:, L - R - j : L - j, E // 3 :].addcmul_(df_BRV, featurizer_EF[E // 3 :, j].to(df_BRV.dtype))
        dz_BLE[:, L - F + 1 :] += dpast_BPE
        seen_BFVR = z_BLE[:, L - R - F + 1 :, E // 3 :].to(df_BRV.dtype).unfold(1, R, 1)
        dfeaturizer_EF = torch.zeros_like(featurizer_EF, dtype=df_BRV.dtype)
        dfeaturizer_EF[E // 3 :] = torch.einsum("brv,bfvr->vf", df_BRV, seen_BFVR).flip(1)
        dbias_E = torch.cat([df_BRV.new_zeros(E // 3), df_BRV.sum((0, 1))]) if ctx.biased else None
        return dz_BLE, dfeaturizer_EF, dbias_E, None
