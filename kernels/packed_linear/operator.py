"""A linear layer of a packed weight: the Triton kernel for a few rows where it can run, plain torch elsewhere."""

# M rows, D inputs, E outputs; X any leading dimensions

import torch
from torch import Tensor

from kernels.backend import Backend, lacks_fp8, use_triton
from kernels.packed_linear import reference

MOST_ROWS = 8  # with more, the sums of a program leave no room for codes on their way


def packed_linear(
    x_XD: Tensor,
    codes_ED: Tensor,
    units_E: Tensor,
    bias_E: Tensor | None = None,
    *,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """y = x (codes * units)^T + bias, in the dtype of x, of a weight as `pack` keeps it.

    Few rows, as in decoding, take as long as reading the weight does: the kernel reads its bytes, and sums in float32.
    More rows are multiplied with the weight as numbers of the dtype of x, which are there for that moment.

    Args:
        x_XD: any leading dimensions.
        codes_ED: E4M3, as uint8. units_E: float32.

    Raises:
        ValueError: `backend` is `triton` and the kernel cannot run this call of few rows; the message says why.
    """
    if x_XD.numel() > MOST_ROWS * x_XD.shape[-1] or (torch.is_grad_enabled() and x_XD.requires_grad):
        return reference.packed_linear(x_XD, codes_ED, units_E, bias_E)
    if not use_triton(backend, "packed_linear", x_XD, lacks_fp8(x_XD)):
        return reference.packed_linear(x_XD, codes_ED, units_E, bias_E)
    return _multiply(x_XD, codes_ED, units_E, bias_E)


@torch.library.custom_op("evo::packed_linear", mutates_args=())
def _multiply(x_XD: Tensor, codes_ED: Tensor, units_E: Tensor, bias_E: Tensor | None) -> Tensor:
    from kernels.packed_linear.step import multiply

    with torch.cuda.device_of(x_XD):
        x_MD = x_XD.reshape(-1, x_XD.shape[-1]).contiguous()
        y_ME = multiply(x_MD, codes_ED.contiguous(), units_E.contiguous(), bias_E)
        return y_ME.view(*x_XD.shape[:-1], codes_ED.shape[0])


@_multiply.register_fake
def _(x_XD, codes_ED, units_E, bias_E):  # type: ignore[no-untyped-def]
    return x_XD.new_empty(*x_XD.shape[:-1], codes_ED.shape[0])
