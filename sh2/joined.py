"""Layers of a block with what stands around them, in one launch for a few tokens on a GPU.

A token's step through a large model takes as long as reading its weights, and what is small beside them costs a launch
each: here a norm before a layer, a gate's product and the sum onto the stream cost none. Elsewhere, and for layers that
are more than a weight and a bias (FP8, adapters, watched by hooks), each runs by itself. For inference alone.
"""

# B batch, L length, D width, E outputs, I inner width of the MLP

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from kernels import Backend, few_rows, gated_step, linear_step
from sh2.fp8 import InputProjection
from sh2.layers import GatedMLP, RMSNorm
from sh2.mixers import Attention, HyenaFir, HyenaLI


def normed(norm: RMSNorm, layer: nn.Module, x_BLD: Tensor) -> Tensor:
    """layer(norm(x))."""
    if not (_few(x_BLD) and _bare(norm) and _plain(layer, x_BLD)):
        y_BLE: Tensor = layer(norm(x_BLD))
        return y_BLE
    return linear_step(x_BLD, layer.weight, layer.bias, scale_D=norm.scale, eps=norm.eps, backend=norm.backend)


def gated(norm: RMSNorm, mlp: GatedMLP, x_BLD: Tensor) -> Tensor:
    """act(gate(norm(x))) * up(norm(x))."""
    if not (_few(x_BLD) and _bare(norm) and _plain(mlp.gate, x_BLD) and _plain(mlp.up, x_BLD)):
        return mlp.inner(norm(x_BLD))
    return gated_step(
        x_BLD,
        mlp.gate.weight,
        mlp.up.weight,
        scale_D=norm.scale,
        eps=norm.eps,
        activation=mlp.activation,
        backend=norm.backend,
    )


def added(x_BLD: Tensor, layer: nn.Module, u_BLI: Tensor, backend: Backend) -> Tensor:
    """x + layer(u)."""
    if not (_few(u_BLI) and _plain(layer, u_BLI)):
        y_BLD: Tensor = layer(u_BLI)
        return x_BLD + y_BLD
    return linear_step(u_BLI, layer.weight, layer.bias, onto_XE=x_BLD, backend=backend)


def mixed(norm: RMSNorm, mixer: HyenaFir | HyenaLI | Attention, x_BLD: Tensor, state: Any) -> tuple[Tensor, Any]:
    """x + mixer(norm(x)), of any number of tokens; without gradients on a GPU, the sum is the product's."""
    output = mixer.output
    if not (_summing(x_BLD) and _bare(norm) and _bare(mixer) and _plain(output, x_BLD) and output.bias is not None):
        y_BLD, state = mixer(norm(x_BLD), state)
        return x_BLD + y_BLD, state
    normed_BLD, x_BLD = norm.and_sum(x_BLD, output.bias)
    u_BLD, state = mixer.inner(normed_BLD, state)
    x_BLD.flatten(0, 1).addmm_(u_BLD.flatten(0, 1), output.weight.T)
    return x_BLD, state


def fed(norm: RMSNorm, mlp: GatedMLP, x_BLD: Tensor) -> Tensor:
    """x + mlp(norm(x)), of any number of tokens; without gradients on a GPU, in the memory of x."""
    if not (_summing(x_BLD) and _bare(mlp) and _plain(mlp.down, x_BLD)):
        y_BLD: Tensor = mlp(norm(x_BLD))
        return x_BLD + y_BLD
    h_BLI = mlp.inner(norm(x_BLD))
    x_BLD.flatten(0, 1).addmm_(h_BLI.flatten(0, 1), mlp.down.weight.T)
    return x_BLD


def _few(x_BLD: Tensor) -> bool:
    return x_BLD.is_cuda and few_rows(x_BLD)


def _summing(x_BLD: Tensor) -> bool:
    """Whether sums are products' own: a GPU's libraries make none of their own for it."""
    return x_BLD.is_cuda and not torch.is_grad_enabled()


def _plain(layer: nn.Module, x_BLD: Tensor) -> TypeGuard[nn.Linear]:
    """Whether a layer is its weight and its bias and nothing else, in the dtype of x."""
    linear = type(layer) is nn.Linear or (type(layer) is InputProjection and layer.precision is None)
    return linear and _bare(layer) and layer.weight.dtype is x_BLD.dtype


def _bare(module: nn.Module) -> bool:
    """Whether nobody watches a module or changes what it says."""
    return not (module._forward_hooks or module._forward_pre_hooks)
