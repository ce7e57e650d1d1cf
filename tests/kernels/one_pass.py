"""Every kernel once, forward and backward, at odd sizes: what a memory checker watches.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tests.kernels.one_pass

Without the cache every tensor is an allocation of its own, so that a read beyond its end is seen. Run it once without
the checker before: compiling under it takes minutes.
"""

import sys

import torch
from torch import Tensor

from kernels import (
    attention_append,
    attention_step,
    gated_step,
    hyena_fir,
    hyena_fir_step,
    hyena_li,
    hyena_li_step,
    linear_step,
    merge_attention,
    pack,
    packed_linear,
    quantise,
    rescale,
    rms_norm,
    rms_norm_and_sum,
    rotate,
)
from kernels.backend import Backend

_L, _D, _G, _N, _F = 301, 64, 4, 16, 3


def main() -> None:
    """Run the kernels and say their names."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).cuda()

    for dtype in (torch.bfloat16, torch.float32):
        for taps in (7, 128):
            sys.stderr.write(f"hyena_fir, {taps} taps, {dtype}\n")
            z = randn(2, _L, 3 * _D, dtype=dtype).requires_grad_()
            parameters = [randn(3 * _D, _F), randn(3 * _D), randn(_G, taps) / taps, randn(_D)]
            y, state = hyena_fir(z, *[p.requires_grad_() for p in parameters], backend=Backend.TRITON)
            (y.sum() + sum(part.sum() for part in state)).backward()
            with torch.no_grad():
                hyena_fir_step(z[:, 0].detach().clone(), *parameters, state, backend=Backend.TRITON)
        sys.stderr.write(f"hyena_li, {dtype}\n")
        z = randn(2, _L, 3 * _D, dtype=dtype).requires_grad_()
        parameters = [randn(3 * _D, _F), randn(3 * _D), -randn(_D, _N).abs(), randn(_D, _N), randn(_D)]
        y, modes = hyena_li(z, *[p.requires_grad_() for p in parameters], backend=Backend.TRITON)
        (y.sum() + sum(part.sum() for part in modes)).backward()
        with torch.no_grad():
            hyena_li_step(z[:, 0].detach().clone(), *parameters, modes, backend=Backend.TRITON)
            sys.stderr.write(f"rms_norm, rotate, attention, {dtype}\n")
            rms_norm(randn(2, _L, _D, dtype=dtype), randn(_D), 1e-6, backend=Backend.TRITON)
            rms_norm_and_sum(randn(2, _L, _D, dtype=dtype), randn(_D), randn(_D), 1e-6, backend=Backend.TRITON)
            rotate(randn(2, _L, 4, 16, dtype=dtype), randn(1, _L, 1, 8), randn(1, _L, 1, 8), backend=Backend.TRITON)
            cache = [randn(2, _L, 4, 16, dtype=dtype) for _ in range(2)]
            end = torch.tensor([_L - 2, 5], device="cuda")
            q = attention_append(
                randn(2, 3 * _D, dtype=dtype), randn(8), 1.0, *cache, None, None, end, backend=Backend.TRITON
            )
            attention_step(q, *cache, end_B=end, backend=Backend.TRITON)
            parts = [randn(2, _L, 4, 16, dtype=dtype).transpose(1, 2) for _ in range(3)]
            merge_attention(parts, [randn(2, 4, _L) for _ in parts], backend=Backend.TRITON)
            sys.stderr.write(f"linear_step, packed_linear, {dtype}\n")
            x, weight, up = (randn(*shape, dtype=dtype) for shape in ((3, _L), (_D + 1, _L), (_D + 1, _L)))
            norm = {"scale_D": randn(_L), "eps": 1e-6}
            onto, bias = (randn(*shape, dtype=dtype) for shape in ((3, _D + 1), (_D + 1,)))
            linear_step(x, weight, bias, **norm, onto_XE=onto, backend=Backend.TRITON)
            gated_step(x, weight, up, **norm, activation="gelu", backend=Backend.TRITON)
            packed_linear(x, *pack(weight), bias, backend=Backend.TRITON)
            sys.stderr.write(f"quantise, rescale, {dtype}\n")
            _, scale = quantise(weight, backend=Backend.TRITON)
            quantise(weight, scale[0], backend=Backend.TRITON)
            rescale(randn(_D + 1, _L), scale, x[0], dtype, backend=Backend.TRITON)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
