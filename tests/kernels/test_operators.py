"""Every operator against its definition in float64, and against itself cut into pieces."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import FirState, ModalState, channel_fir, grouped_fir, hyena_fir, hyena_li, modal_scan
from tests.kernels import definitions

LENGTHS = [1, 2, 3, 7, 63, 64, 65, 127, 128, 129, 300]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("taps", [1, 2, 3, 5])
def test_channel_fir_is_the_convolution_and_returns_the_last_inputs(length: int, taps: int) -> None:
    x, h = randn(2, length, 6, seed=1), randn(6, taps, seed=2)
    y, past = channel_fir(x, h)
    assert definitions.relative_error(y, definitions.convolve(x, h)) < 1e-6
    padded = torch.cat([torch.zeros(2, taps - 1, 6), x], dim=1)
    assert torch.equal(past, padded[:, length:])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("groups", "taps"), [(1, 7), (2, 128), (4, 129), (8, 64), (4, 3), (2, 256)])
def test_grouped_fir_is_the_convolution_for_every_filter_length(length: int, groups: int, taps: int) -> None:
    x, h = randn(2, length, 8, seed=3), randn(groups, taps, seed=4)
    y, past = grouped_fir(x, h)
    assert definitions.relative_error(y, definitions.convolve(x, h.repeat_interleave(8 // groups, dim=0))) < 1e-6
    padded = torch.cat([torch.zeros(2, taps - 1, 8), x], dim=1)
    assert torch.equal(past, padded[:, length:])


@pytest.mark.parametrize(("block", "taps", "exact"), [(8, 9, True), (8, 10, False), (8, 16, False), (4, 3, True)])
def test_two_toeplitz_factors_are_exact_up_to_one_tap_more_than_the_block(block: int, taps: int, exact: bool) -> None:
    x, h = randn(1, 5 * block, 1, seed=5, dtype=torch.float64), randn(1, taps, seed=6, dtype=torch.float64)
    full = definitions.toeplitz(h, 5 * block)
    two_factors = torch.zeros_like(full)
    for n in range(5):
        rows = slice(n * block, (n + 1) * block)
        columns = slice(max(0, n - 1) * block, (n + 1) * block)
        two_factors[:, rows, columns] = full[:, rows, columns]
    y = torch.einsum("dts,bsd->btd", two_factors, x)
    assert (definitions.relative_error(y, grouped_fir(x, h)[0]) < 1e-12) is exact


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("modes", [1, 16])
def test_modal_scan_is_the_convolution_with_the_exponentials(length: int, modes: int) -> None:
    w, residues = randn(2, length, 4, seed=7), randn(4, modes, seed=8)
    log_poles = -torch.exp(randn(4, modes, seed=9) * 2 - 2)
    y, state = modal_scan(w, log_poles, residues)
    filters = definitions.modal_filter(log_poles, residues, length)
    assert definitions.relative_error(y, definitions.convolve(w, filters)) < 2e-6
    decay = torch.exp(log_poles.double()[:, :, None] * torch.arange(length - 1, -1, -1, dtype=torch.float64))
    assert definitions.relative_error(state, torch.einsum("dnl,bld->bdn", decay, w.double())) < 2e-6


Operator = Callable[[Tensor, Any], tuple[Tensor, Any]]


def weights_of(kind: str, width: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Random weights for one of the hyena operators."""
    weights: dict[str, Tensor | None] = {
        "featurizer": randn(3 * width, 3, seed=10, dtype=dtype),
        "bias": randn(3 * width, seed=11, dtype=dtype) if kind != "se" else None,
        "skip": randn(width, seed=12, dtype=dtype) if kind != "se" else None,
    }
    if kind == "li":
        weights["log_poles"] = -torch.exp(randn(width, 16, seed=13, dtype=dtype) - 2)
        weights["residues"] = randn(width, 16, seed=14, dtype=dtype) / 4
    else:
        weights["taps"] = randn(width // 4, 7 if kind == "se" else 128, seed=15, dtype=dtype) / 4
    return weights


def operator_of(kind: str, weights: dict[str, Tensor | None]) -> Operator:
    if kind == "li":
        return lambda z, state: hyena_li(
            z, weights["featurizer"], weights["bias"], weights["log_poles"], weights["residues"], weights["skip"], state
        )
    return lambda z, state: hyena_fir(
        z, weights["featurizer"], weights["bias"], weights["taps"], weights["skip"], state
    )


def definition_of(kind: str, weights: dict[str, Tensor | None], z: Tensor) -> Tensor:
    width = z.shape[-1] // 3
    if kind == "li":
        taps = definitions.modal_filter(weights["log_poles"], weights["residues"], z.shape[1])
    else:
        taps = weights["taps"].repeat_interleave(4, dim=0)
    assert taps.shape[0] == width
    return definitions.hyena(z, weights["featurizer"], weights["bias"], taps, weights["skip"])


@pytest.mark.parametrize("kind", ["se", "mr", "li"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13), (torch.bfloat16, 4e-3)]
)
def test_an_operator_is_equation_one(kind: str, length: int, dtype: torch.dtype, tolerance: float) -> None:
    weights = weights_of(kind, 8, dtype)
    z = randn(2, length, 24, seed=16, dtype=dtype)
    y, _ = operator_of(kind, weights)(z, None)
    assert y.dtype is dtype
    assert definitions.relative_error(y, definition_of(kind, weights, z)) < tolerance


@pytest.mark.parametrize("kind", ["se", "mr", "li"])
def test_gradients_are_those_of_the_definition(kind: str) -> None:
    weights = weights_of(kind, 8, torch.float64)
    z = randn(2, 150, 24, seed=17, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (z, *(w for w in weights.values() if w is not None))]
    probe = randn(2, 150, 8, seed=18, dtype=torch.float64)
    got = torch.autograd.grad((operator_of(kind, weights)(z, None)[0] * probe).sum(), leaves)
    want = torch.autograd.grad((definition_of(kind, weights, z) * probe).sum(), leaves)
    for one, other in zip(got, want, strict=True):
        assert definitions.relative_error(one, other) < 1e-12


def in_pieces(operator: Operator, z: Tensor, cuts: list[int], state: Any = None) -> tuple[Tensor, Any]:
    outputs = []
    for start, stop in itertools.pairwise([0, *cuts, z.shape[1]]):
        y, state = operator(z[:, start:stop], state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("kind", ["se", "mr", "li"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pieces_joined_equal_one_pass_with_gradients(kind: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 400), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=8), label="cuts"))
    weights = weights_of(kind, 8, torch.float32)
    leaves = [leaf.requires_grad_() for leaf in weights.values() if leaf is not None]
    z = randn(2, length, 24, seed=19).requires_grad_()
    probe = randn(2, length, 8, seed=20)
    whole, whole_state = operator_of(kind, weights)(z, None)
    joined, joined_state = in_pieces(operator_of(kind, weights), z, cuts)
    assert definitions.relative_error(joined, whole) < 1e-5
    for one, other in zip(joined_state, whole_state, strict=True):
        assert definitions.relative_error(one, other) < 1e-5
    for one, other in zip(
        torch.autograd.grad((joined * probe).sum(), [z, *leaves]),
        torch.autograd.grad((whole * probe).sum(), [z, *leaves]),
        strict=True,
    ):
        assert definitions.relative_error(one, other) < 1e-5


@pytest.mark.parametrize("kind", ["se", "mr", "li"])
def test_the_gradient_of_the_incoming_state_is_that_of_the_inputs_that_made_it(kind: str) -> None:
    weights = weights_of(kind, 8, torch.float64)
    operator = operator_of(kind, weights)
    first, second = randn(1, 140, 24, seed=21, dtype=torch.float64), randn(1, 9, 24, seed=22, dtype=torch.float64)
    _, state = operator(first, None)
    leaves = [part.detach().requires_grad_() for part in state]
    state_type = ModalState if kind == "li" else FirState
    y, _ = operator(second, state_type(*leaves))
    grads = torch.autograd.grad(y.sum(), leaves)
    step = 1e-6
    for leaf, grad in zip(leaves, grads, strict=True):
        direction = randn(*leaf.shape, seed=23, dtype=torch.float64)
        moved = []
        for sign in (1, -1):
            parts = [part + sign * step * direction if part is leaf else part for part in leaves]
            moved.append(operator(second, state_type(*parts))[0].sum())
        assert float((moved[0] - moved[1]).detach() / (2 * step)) == pytest.approx(
            float((grad * direction).sum()), rel=1e-6
        )


@pytest.mark.parametrize("kind", ["se", "mr", "li"])
def test_no_output_depends_on_a_later_input(kind: str) -> None:
    operator = operator_of(kind, weights_of(kind, 8, torch.float32))
    z = randn(1, 200, 24, seed=24)
    changed = z.clone()
    changed[:, 133] += 1
    before, after = operator(z, None)[0], operator(changed, None)[0]
    assert torch.equal(before[:, :128], after[:, :128])
    assert definitions.relative_error(after[:, :133], before[:, :133]) < 1e-6
    assert not torch.equal(before[:, 133], after[:, 133])
