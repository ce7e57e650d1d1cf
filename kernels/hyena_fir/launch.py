"""What the kernels of hyena_fir are launched with: grids, block sizes, outputs, and the last sums over programs."""

# B batch, L length, D width, E = 3D, G filter groups, F featurizer taps, K inner taps, S programs along the rows

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kernels.hyena_fir import banded_backward as banded_b
from kernels.hyena_fir import banded_forward as banded_f
from kernels.hyena_fir import direct_backward as direct_b
from kernels.hyena_fir import direct_forward as direct_f
from kernels.hyena_fir.tiles import group_tiles, tile_channels
from kernels.rows import FUSED

_PROGRAMS = 1024  # enough for a large GPU: more would read more rows twice

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Inputs(NamedTuple):
    """What the kernels read, in their order: all float32 but z and its state."""

    z: Tensor  # [B, L, 3D]
    z_past: Tensor  # [B, F-1, 3D]
    w_past: Tensor  # [B, K-1, D]
    featurizer: Tensor  # [3D, F]
    bias: Tensor | None  # [3D]
    taps: Tensor  # [G, K]
    skip: Tensor | None  # [D]

    def packed(self) -> Self:
        """The same with channels side by side in memory; batch and rows of z may lie at any stride."""
        z = self.z if self.z.stride(2) == 1 else self.z.contiguous()
        others = {
            name: value.contiguous() for name, value in self._asdict().items() if name != "z" and value is not None
        }
        return self._replace(z=z, **others)

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, L, D, G, F and K."""
        return *self.z.shape[:2], self.w_past.shape[2], self.taps.shape[0], self.featurizer.shape[1], self.taps.shape[1]

    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        _, _, D, G, F, K = self.sizes()
        flags = {"BIAS": self.bias is not None, "SKIP": self.skip is not None}
        return {"stride": self.z.stride(1), "D": D, "G": G, "F": F, "K": K, **flags, **FUSED}


def rows_a_program(B: int, L: int, abreast: int, least: int, most: int) -> int:
    """Choose how many rows a program walks, `abreast` of them side by side: as many as leave the GPU enough programs.

    The most, halved until enough or as far as the least allows.
    """
    rows = most
    while rows // 2 >= least and B * abreast * -(-L // rows) < _PROGRAMS:
        rows //= 2
    return rows


def kept_past(w_last: Tensor, w_past: Tensor, length: int) -> Tensor:
    """Carry over what of the state before a piece shorter than the filter is still state after it."""
    if length < w_past.shape[1]:
        w_last[:, : w_past.shape[1] - length] = w_past[:, length:]
    return w_last


def direct_forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run a filter of few taps: y [B, L, D] and the last gated inputs [B, K-1, D]."""
    inputs = inputs.packed()
    B, L, D, *_ = inputs.sizes()
    y, w_last = inputs.z.new_empty(B, L, D), torch.empty_like(inputs.w_past)
    channels = 128
    rows = rows_a_program(B, L, -(-D // channels), least=16, most=256)
    direct_f.direct_forward[-(-D // channels), -(-L // rows), B](
        *inputs,
        y,
        w_last,
        L,
        rows,
        inputs.z.stride(0),
        **inputs.constants(),
        C=channels,
        U=8,
        num_warps=2,
    )
    return y, w_last


def direct_backward(dy: Tensor, dw_last: Tensor | None, inputs: Inputs) -> Gradients:
    """Run the backward of a filter of few taps: gradients of z, both states, featurizer, its bias, taps and skip."""
    inputs = inputs.packed()
    B, L, D, G, F, K = inputs.sizes()
    dy, dw_last = dy.contiguous(), None if dw_last is None else dw_last.contiguous()
    dz = inputs.z.new_empty(B, L, 3 * D)
    dz_past, dw_past = torch.empty_like(inputs.z_past), torch.empty_like(inputs.w_past)
    channels = 64
    rows = rows_a_program(B, L, -(-D // channels), least=16, most=512)
    programs = -(-L // rows)
    sums = K + 3 * (F + (inputs.bias is not None))
    partial = dz.new_empty(B * programs, sums, D, dtype=torch.float32)
    direct_b.direct_backward[-(-D // channels), programs, B](
        *inputs,
        dy,
        dw_last,
        dz,
        dz_past,
        dw_past,
        partial,
        L,
        rows,
        inputs.z.stride(0),
        **inputs.constants(),
        LAST=dw_last is not None,
        C=channels,
        U=4,
        num_warps=1,
    )
    total = partial.sum(0)
    dtaps = total[:K].view(K, G, D // G).sum(2).T.contiguous()
    dfeaturizer, dbias = featurizer_gradients(total[K:], F)
    return dz, dz_past, carried_back(dw_past, dw_last, L), dfeaturizer, dbias, dtaps, total[0].clone()


def featurizer_gradients(sums: Tensor, F: int) -> tuple[Tensor, Tensor]:
    """Order the sums [3 (F + bias), D] as the featurizer's taps [3D, F] and bias [3D] (of no meaning without one)."""
    thirds = sums.unflatten(0, (3, -1)).transpose(1, 2)
    # copies: an operator's outputs must not share memory
    return thirds[..., :F].flatten(0, 1).clone(memory_format=torch.contiguous_format), thirds[..., -1].flatten().clone()


def carried_back(dw_past: Tensor, dw_last: Tensor | None, length: int) -> Tensor:
    """Add the gradient of what `kept_past` carried over."""
    if dw_last is not None and length < dw_past.shape[1]:
        dw_past[:, length:] += dw_last[:, : dw_past.shape[1] - length]
    return dw_past


def rows_a_walk(B: int, L: int, K: int, abreast: int, segments: int) -> int:
    """Choose how many rows a program with `segments` segments walks: whole blocks, and all that a filter reaches.

    Longer segments read fewer rows twice; but programs that drift apart no longer share what the memory brings.
    """
    step, past = 16 * segments, 16 * ((K + 14) // 16)
    return rows_a_program(B, L, abreast, least=step * -(-past // step), most=2048 * max(1, segments // 2))


def banded_forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run a filter of many taps: y [B, L, D] and the last gated inputs [B, K-1, D]."""
    inputs = inputs.packed()
    B, L, D, G, _, K = inputs.sizes()
    y, w_last = inputs.z.new_empty(B, L, D), torch.empty_like(inputs.w_past)
    channels, warps = tile_channels(D, G), 2
    abreast = -(-G * group_tiles(D, G) // (2 * warps))
    rows = rows_a_walk(B, L, K, abreast * warps, 16 // channels)
    banded_f.banded_forward[abreast, -(-L // rows), B](
        *inputs,
        y,
        w_last,
        L,
        rows,
        inputs.z.stride(0),
        **inputs.constants(),
        CHANNELS=channels,
        N=32 * warps,
        num_warps=warps,
    )
    return y, kept_past(w_last, inputs.w_past, L)


def banded_backward(dy: Tensor, dw_last: Tensor | None, inputs: Inputs) -> Gradients:
    """Run the backward of a filter of many taps: the same gradients as `direct_backward`."""
    inputs = inputs.packed()
    B, L, D, G, F, K = inputs.sizes()
    dy, dw_last = dy.contiguous(), None if dw_last is None else dw_last.contiguous()
    dz = inputs.z.new_empty(B, L, 3 * D)
    dz_past, dw_past = torch.empty_like(inputs.z_past), torch.empty_like(inputs.w_past)
    channels, count = tile_channels(D, G), G * group_tiles(D, G)
    blocks = (K + 14) // 16 + 1
    sums = F + (inputs.bias is not None)
    options = inputs.constants() | {"CHANNELS": channels, "num_warps": 1}

    segments = 32 // channels
    rows = rows_a_walk(B, L, K, count, segments)
    programs = -(-L // rows)
    partial = dz.new_empty(B * programs * segments, sums, D, dtype=torch.float32)
    partial_taps = dz.new_empty(B * programs, count, blocks, 16, 16, dtype=torch.float32)
    banded_b.banded_down[count, programs, B](
        *inputs,
        dy,
        dz,
        dz_past,
        partial,
        partial_taps,
        L,
        rows,
        inputs.z.stride(0),
        **options,
    )
    dtaps = torch.empty_like(inputs.taps)
    banded_b.sum_taps[G, -(-K // 16)](partial_taps, dtaps, B * programs, K, count // G, blocks, num_warps=1)
    total = dz.new_empty(3 * sums + 1, D, dtype=torch.float32)
    torch.sum(partial, 0, out=total[:sums])

    segments = 16 // channels
    pairs = -(-count // 2)
    rows = rows_a_walk(B, L, K, pairs, segments)
    programs = -(-L // rows)
    partial = dz.new_empty(B * programs * segments, 2 * sums + 1, D, dtype=torch.float32)
    banded_b.banded_up[pairs, programs, B](
        inputs.z,
        inputs.z_past,
        inputs.featurizer,
        inputs.bias,
        inputs.taps.flip(1),
        inputs.skip,
        dy,
        dw_last,
        dz,
        dz_past,
        dw_past,
        partial,
        L,
        rows,
        inputs.z.stride(0),
        LAST=dw_last is not None,
        **options,
    )
    torch.sum(partial, 0, out=total[sums:])
    dfeaturizer, dbias = featurizer_gradients(total[:-1], F)
    return dz, dz_past, carried_back(dw_past, dw_last, L), dfeaturizer, dbias, dtaps, total[-1].clone()
