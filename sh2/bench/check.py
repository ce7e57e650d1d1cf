"""Whether what is to be timed computes what it should: outputs, states, gradients, against float64."""

# B batch, L length, D width, E = 3D projected channels

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sh2.bench.cases import Case, Draw, Operator, Problem, reference

_OUTPUTS = ("y", "the featurizer's state", "the filter's state")


class CheckError(Exception):
    """Why what was to be timed gets no figure: a tensor is wrong, and by how much, or there is none to check."""


def leaves(problem: Problem) -> list[Tensor]:
    """The inputs as leaves of a new autograd graph, without copying them."""
    return [tensor.detach().requires_grad_() for tensor in problem.inputs.values()]


def check_outputs(problem: Problem, tolerance: float) -> float:
    """Compare every output with the definition's; return the largest relative L2 error.

    Raises:
        CheckError: an error is over the tolerance.
    """
    with torch.no_grad():
        got = problem.call(*problem.inputs.values())
        want = problem.definition(*_doubled(problem))
    names = _OUTPUTS[: len(want)]
    return max(_compare(name, a, b, tolerance) for name, a, b in zip(names, got, want, strict=True))


def check_gradients(problem: Problem, tolerance: float) -> float:
    """Compare the gradients of every input, from random gradients of all outputs; return the largest relative error.

    Raises:
        CheckError: an error is over the tolerance, an input has no gradient, or there is no backward.
    """
    if not problem.differentiable:
        raise CheckError("there is none")
    inputs, doubled = leaves(problem), [tensor.requires_grad_() for tensor in _doubled(problem)]
    outputs = problem.call(*inputs)
    cotangents = [torch.randn_like(output) for output in outputs]
    got = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    want = torch.autograd.grad(problem.definition(*doubled), doubled, [tensor.double() for tensor in cotangents])
    names = [f"the gradient of {name}" for name in problem.inputs]
    return max(_compare(name, a, b, tolerance) for name, a, b in zip(names, got, want, strict=True))


def check_ends(case: Case, problem: Problem, ends: int, tolerance: float) -> float:
    """Check the first and last tokens of our operator at its full length, where wrong addresses would show.

    The reference of the last tokens starts from the state that the operator itself returned for those before.

    Raises:
        CheckError: an error is over the tolerance.
    """
    z_BLE, *parameters = problem.inputs.values()
    with torch.no_grad():
        y_BLD = problem.call(z_BLE, *parameters)[0]
        head_BLD, tail_BLD = y_BLD[:, :ends].clone(), y_BLD[:, -ends:].clone()
        del y_BLD
        doubled = [parameter.double() for parameter in parameters]
        wanted_head_BLD = reference(case.op)(z_BLE[:, :ends].double(), *doubled)[0]
        wanted_tail_BLD = _last_tokens(case.op, problem, z_BLE[:, -ends:].double())
    return max(
        _compare("y at the start", head_BLD, wanted_head_BLD, tolerance),
        _compare("y at the end", tail_BLD, wanted_tail_BLD, tolerance),
    )


def check_last_gradient(case: Case, problem: Problem, ends: int, tolerance: float) -> float:
    """Check the gradient of the last inputs of our operator at its full length; it depends on no others' gradient.

    Raises:
        CheckError: the error is over the tolerance.
    """
    z_BLE, *parameters = problem.inputs.values()
    leaf_BLE, last_BLE = z_BLE.detach().requires_grad_(), z_BLE[:, -ends:].double().requires_grad_()
    y_BLD = problem.call(leaf_BLE, *parameters)[0]
    grad_BLD = random_gradient(case, y_BLD)
    got_BLE = torch.autograd.grad(y_BLD, leaf_BLE, grad_BLD)[0][:, -ends:].clone()
    del y_BLD
    wanted_BLD = _last_tokens(case.op, problem, last_BLE)
    (want_BLE,) = torch.autograd.grad(wanted_BLD, last_BLE, grad_BLD[:, -ends:].double())
    return _compare("the gradient of z at the end", got_BLE, want_BLE, tolerance)


def _last_tokens(op: Operator, problem: Problem, last_BLE: Tensor) -> Tensor:
    """The reference's outputs for the last inputs, from our operator's state after those before."""
    z_BLE, *parameters = problem.inputs.values()
    with torch.no_grad():
        state = problem.call(z_BLE[:, : -last_BLE.shape[1]], *parameters)[1:]
    doubled = [parameter.double() for parameter in parameters]
    return reference(op)(last_BLE, *doubled, state=tuple(tensor.double() for tensor in state))[0]


def random_gradient(case: Case, y: Tensor) -> Tensor:
    """A random gradient of an output."""
    return Draw(case).normal(*y.shape, dtype=y.dtype)


@contextmanager
def poisoned() -> Iterator[None]:
    """Let memory that is allocated without being filled hold NaN, so that reading or leaving it shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # torch fills empty tensors in its deterministic mode; its warnings about other operators mean nothing here
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _doubled(problem: Problem) -> list[Tensor]:
    return [tensor.detach().double() for tensor in problem.inputs.values()]


def _compare(name: str, got: Tensor | None, want: Tensor, tolerance: float) -> float:
    """Return the relative L2 error.

    Raises:
        CheckError: it is over the tolerance, or no number; or there is nothing to compare, or of another shape.
    """
    if got is None:
        raise CheckError(f"{name} is missing")
    if got.shape != want.shape:
        raise CheckError(f"{name} has the shape {tuple(got.shape)}, not {tuple(want.shape)}")
    error = float((got.detach().double() - want.detach()).norm() / want.detach().norm())
    if not error <= tolerance:
        raise CheckError(f"{name} is off by {error:.1e} relative to float64, over the {tolerance:.0e} allowed")
    return error
