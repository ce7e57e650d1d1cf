"""The state after the last rows is the operator's after all rows, with its gradients."""

import pytest
import torch

from kernels import hyena_fir, hyena_fir_state
from kernels.backend import Backend
from tests.kernels import definitions


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("F", "K"), [(1, 1), (1, 4), (3, 1), (2, 5), (3, 20), (4, 7)])
@pytest.mark.parametrize("more", [0, 3])
def test_the_last_rows_make_the_state(F: int, K: int, biased: bool, more: int) -> None:
    generator = torch.Generator().manual_seed(F + K)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    rows = max(1, F + K - 2) + more
    z, featurizer, bias, taps = randn(2, 30, 12), randn(12, F), randn(12) if biased else None, randn(2, K)
    want = hyena_fir(z, featurizer, bias, taps, None, backend=Backend.REFERENCE)[1]
    got = hyena_fir_state(z[:, 30 - rows :], featurizer, bias, K)
    leaves = [z, featurizer, *([bias] if biased else [])]
    cotangents = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in want]
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)
    for one, other in zip(
        torch.autograd.grad(got, leaves, cotangents),
        torch.autograd.grad(want, leaves, cotangents, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_numbers_of_16_bits_are_worked_with_in_32() -> None:
    generator = torch.Generator().manual_seed(1)
    z, featurizer = torch.randn(1, 21, 12, generator=generator), torch.randn(12, 3, generator=generator)
    half = z.bfloat16().requires_grad_()
    past, inner = hyena_fir_state(half, featurizer, None, 20)
    assert (past.dtype, inner.dtype) == (torch.bfloat16, torch.float32)
    want = hyena_fir(half.detach().double(), featurizer.double(), None, torch.ones(2, 20).double(), None)[1]
    assert definitions.relative_error(inner, want.inner_BPD) < 1e-6
    (gradient,) = torch.autograd.grad([past, inner], [half], [torch.ones_like(past), torch.ones_like(inner)])
    assert gradient.dtype is torch.bfloat16
