"""A weight times a few rows in Triton: every number is read once, and multiplied with all rows.

What stands around the layer in a block costs no launch: RMSNorm before it is a factor of the sum, for
W (x s / r) = (W (x s)) / r, and r is summed up along the way; a gate's product and the sum onto the stream come last.
"""

# M rows, D inputs, E outputs; R outputs a program, N inputs at once, U times as many on their way

import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import FUSED

INPUTS = 256


def program(E: int, gated: bool) -> tuple[int, int, int]:
    """Outputs of a program, blocks on their way, and warps, as measured on an H100.

    The same for any number of rows, so that none changes the order in which another's sums are taken.
    """
    if gated:  # two weights are on their way
        return 4, 4, 4
    return (1, 8, 1) if E <= 4096 else (2, 8, 2)


@triton.jit
def ahead(weight, at_R1, mask_R1, start, D, N: tl.constexpr, U: tl.constexpr):
    """U blocks of a weight's numbers, all on their way at once: U x [R, N]."""
    blocks = ()
    for u in tl.static_range(U):
        input_N = start + u * N + tl.arange(0, N)
        mask_RN = mask_R1 & (input_N < D)[None, :]
        blocks = blocks + (tl.load(weight + at_R1 + input_N[None, :], mask=mask_RN, other=0.0),)
    return blocks


@triton.jit
def finish(sum_RN, factor, bias_R, like, BIAS: tl.constexpr):
    """The outputs of one row, rounded as the layer's are: [R]."""
    y_R = tl.sum(sum_RN, axis=1) * factor
    if BIAS:
        y_R += bias_R
    return y_R.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def activate(x_R, like, ACTIVATION: tl.constexpr):
    """The gate's activation, rounded."""
    if ACTIVATION == "gelu":
        x_R = 0.5 * x_R * (1.0 + tl.erf(x_R * 0.7071067811865476))
    if ACTIVATION == "silu":
        x_R = x_R / (1.0 + tl.exp(-x_R))
    return x_R.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def step_kernel(
    x, weight, up, bias, scale, onto, y, D, E, stride_x, stride_onto, eps,
    M: tl.constexpr, R: tl.constexpr, N: tl.constexpr, U: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, ONTO: tl.constexpr,
):  # fmt: skip
    """R outputs of all rows; with an activation, of two weights, multiplied."""
    GATED: tl.constexpr = ACTIVATION is not None
    output_R = tl.program_id(0) * R + tl.arange(0, R)
    mask_R = output_R < E
    mask_R1 = mask_R[:, None]
    at_R1 = output_R.to(tl.int64)[:, None] * D
    same_R1 = tl.zeros((R, 1), tl.int32)
    sums = ()
    up_sums = ()
    squares = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros((R, N), tl.float32),)
        up_sums = up_sums + (tl.zeros((R, N), tl.float32),)
        squares = squares + (tl.zeros((R, N), tl.float32),)
    for start in range(0, D, N * U):
        blocks = ahead(weight, at_R1, mask_R1, start, D, N, U)
        if GATED:
            up_blocks = ahead(up, at_R1, mask_R1, start, D, N, U)
        for u in tl.static_range(U):
            # every output reads the inputs anew, from a cache: they lie as the weight does, and no thread needs another
            input_RN = same_R1 + (start + u * N + tl.arange(0, N))[None, :]
            there_RN = input_RN < D
            weight_RN = blocks[u].to(tl.float32)
            if GATED:
                up_RN = up_blocks[u].to(tl.float32)
            if NORM:
                scale_RN = tl.load(scale + input_RN, mask=there_RN, other=0.0).to(tl.float32)
            new_sums = ()
            new_up_sums = ()
            new_squares = ()
            for m in tl.static_range(M):
                x_RN = tl.load(x + m * stride_x + input_RN, mask=there_RN, other=0.0).to(tl.float32)
                if NORM:
                    new_squares = new_squares + (squares[m] + x_RN * x_RN,)
                    x_RN *= scale_RN
                new_sums = new_sums + (sums[m] + weight_RN * x_RN,)
                if GATED:
                    new_up_sums = new_up_sums + (up_sums[m] + up_RN * x_RN,)
            sums = new_sums
            if GATED:
                up_sums = new_up_sums
            if NORM:
                squares = new_squares
    bias_R = tl.load(bias + output_R, mask=mask_R, other=0.0).to(tl.float32) if BIAS else 0.0
    for m in tl.static_range(M):
        factor = 1.0 / (tl.sqrt(tl.sum(squares[m], axis=1) / D) + eps) if NORM else 1.0
        y_R = finish(sums[m], factor, bias_R, y, BIAS)
        if GATED:
            y_R = activate(y_R, y, ACTIVATION) * finish(up_sums[m], factor, bias_R, y, False)
        if ONTO:
            y_R += tl.load(onto + m * stride_onto + output_R, mask=mask_R, other=0.0).to(tl.float32)
        tl.store(y + m * E + output_R, y_R.to(y.dtype.element_ty), mask=mask_R)


def step(
    x_MD: Tensor,
    weight_ED: Tensor,
    up_ED: Tensor | None,
    bias_E: Tensor | None,
    scale_D: Tensor | None,
    eps: float,
    onto_ME: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Run the kernel on contiguous weights, and rows whose channels lie side by side."""
    (M, D), E = x_MD.shape, weight_ED.shape[0]
    y_ME = x_MD.new_empty(M, E)
    none = y_ME  # in the place of what is not read
    R, U, warps = program(E, activation is not None)
    step_kernel[(triton.cdiv(E, R),)](
        x_MD, weight_ED, none if up_ED is None else up_ED, none if bias_E is None else bias_E,
        none if scale_D is None else scale_D, none if onto_ME is None else onto_ME, y_ME, D, E,
        x_MD.stride(0), 0 if onto_ME is None else onto_ME.stride(0), eps,
        M, R, INPUTS, U, scale_D is not None, activation, bias_E is not None, onto_ME is not None,
        num_warps=warps, **FUSED,
    )  # fmt: skip
    return y_ME
