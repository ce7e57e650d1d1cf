"""A piece of Hyena-LI in two halves is Hyena-LI: outputs, modes and gradients, each kernel run once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels import hyena_li_piece
from kernels.backend import Backend
from kernels.hyena_li import operator, piece
from tests.kernels import comparison, definitions
from tests.kernels.comparison import LAYOUTS, Values, outputs_and_gradients
from tests.kernels.test_hyena_li import TOLERANCE, by_reference, inputs
from tests.kernels.test_hyena_li import small as small

pytestmark = pytest.mark.usefixtures("poisoned")

BACKENDS = [Backend.TRITON, Backend.REFERENCE]
PARAMETERS = ("featurizer", "bias", "log_poles", "residues", "skip")


def begin(values: Values, backend: Backend = Backend.TRITON) -> piece.ModalPiece:
    return hyena_li_piece(values["z"], *(values.get(name) for name in PARAMETERS), values["past"], backend=backend)


def last_inputs(values: Values) -> Tensor:
    return torch.cat([values["past"], values["z"]], dim=1)[:, values["z"].shape[1] :]


def decayed(modes: Tensor, values: Values) -> Tensor:
    return modes * torch.exp(values["log_poles"] * values["z"].shape[1])


def call(values: Values, backend: Backend = Backend.TRITON) -> tuple[Tensor, ...]:
    """What `hyena_li` returns, of the halves."""
    one = begin(values, backend)
    y = one.outputs(values["state"])
    return y, last_inputs(values), one.added_BDN + decayed(values["state"], values)


def divided(values: Values, cuts: list[int], backend: Backend) -> tuple[Tensor, ...]:
    """The same of several pieces, all summed up before the outputs of any are asked for."""
    parts, past = [], values["past"]
    for z in values["z"].tensor_split(cuts, dim=1):
        parts.append(values | {"z": z, "past": past})
        past = last_inputs(parts[-1])
    halves = [begin(part, backend) for part in parts]
    modes, outputs = values["state"], []
    for part, half in zip(parts, halves, strict=True):
        outputs.append(half.outputs(modes))
        modes = half.added_BDN + decayed(modes, part)
    return torch.cat(outputs, dim=1), past, modes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("L", "B", "F", "dtype", "without"),
    [
        (1, 2, 3, torch.float32, ()),
        (3, 1, 4, torch.float32, ("bias",)),
        (7, 1, 1, torch.float32, ()),
        (8, 1, 3, torch.float32, ()),
        (14, 2, 4, torch.float32, ()),
        (16, 1, 3, torch.bfloat16, ()),
        (21, 1, 2, torch.float32, ("bias",)),
    ],
)
def test_the_halves_are_the_operator(
    small: None, L: int, B: int, F: int, dtype: torch.dtype, without: tuple[str, ...], backend: Backend
) -> None:
    values = {name: value for name, value in inputs(L, B=B, F=F, dtype=dtype, D=5).items() if name not in without}
    comparison.check(lambda values: call(values, backend), by_reference, values, TOLERANCE[dtype])


@pytest.mark.parametrize("length", [63, 64, 65, 200])
def test_the_reference_over_chunks_in_float64(length: int) -> None:
    values = comparison.wide(inputs(length, B=2))
    comparison.check(lambda values: call(values, Backend.REFERENCE), by_reference, values, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_that_know_nothing_of_each_other_join(small: None, backend: Backend) -> None:
    values = inputs(25, D=2)
    comparison.check(lambda values: divided(values, [9, 12], backend), by_reference, values, 3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", ["outputs", "added"])
def test_one_half_alone_has_its_gradients(small: None, half: str, backend: Backend) -> None:
    def gradients(values: Values) -> Values:
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        one = begin(leaves, Backend.REFERENCE if values["z"].dtype is torch.float64 else backend)
        result = one.outputs(leaves["state"]) if half == "outputs" else one.added_BDN
        found = torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True)
        return {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}

    values = inputs(19)
    got, want = gradients(values), gradients(comparison.wide(values))
    assert set(want) - set(got) == set()
    for name, gradient in got.items():
        expected = want.get(name, torch.zeros_like(gradient))
        assert definitions.relative_error(gradient, expected) < 3e-6, name


def test_a_graph_gives_its_gradients_twice(small: None) -> None:
    values = inputs(13)
    z = values["z"].requires_grad_()
    y = call(values)[0].square().sum()
    (one,) = torch.autograd.grad(y, [z], retain_graph=True)
    (other,) = torch.autograd.grad(y, [z])
    assert torch.equal(one, other)


def test_what_was_kept_for_backward_can_be_made_again(small: None) -> None:
    def again(values: Values) -> tuple[Tensor, ...]:
        return checkpoint(call, values, use_reentrant=False)

    values = inputs(13, D=2)
    want, got = (outputs_and_gradients(function, values) for function in (call, again))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_outputs_are_asked_for_once() -> None:
    values = inputs(3)
    one = begin(values)
    one.outputs(values["state"])
    with pytest.raises(ValueError, match="hyena_li_piece: the outputs of a piece can be asked for once; sum it up"):
        one.outputs(values["state"])


class Counted:
    """A kernel that says when it is launched."""

    def __init__(self, kernel: Any, launched: list[str]) -> None:
        self.kernel = kernel
        self.launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.launched.append(self.kernel.fn.__name__)
        return self.kernel[grid]


def test_no_kernel_walks_the_rows_twice(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.hyena_li import backward, forward

    launched: list[str] = []
    for module, name in [
        (forward, "states_kernel"),
        (forward, "output_kernel"),
        *((backward, name) for name in ("adjoints_kernel", "up_kernel", "down_kernel")),
    ]:
        monkeypatch.setattr(module, name, Counted(getattr(module, name), launched))
    outputs_and_gradients(call, inputs(19))
    assert launched == ["states_kernel", "output_kernel", "adjoints_kernel", "up_kernel", "down_kernel"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(small: None, layout: str) -> None:
    values = inputs(10, B=2)
    got = outputs_and_gradients(call, {**values, "z": LAYOUTS[layout](values["z"])})
    want = outputs_and_gradients(call, values)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_operators_describe_what_they_return(small: None) -> None:
    values = inputs(19, B=2)
    z, past, *parameters, modes = (values[n] for n in ("z", "past", *PARAMETERS, "state"))
    dy = torch.ones_like(z[..., :3])
    gifts, added = piece._summary(z, past, *parameters[:3], 8)
    back, _ = piece._summary_of_gradients(dy, z, past, *parameters[:4], 8)
    for op, arguments in [
        (piece._summary, (z, past, *parameters[:3], 8)),
        (piece._outputs_of, (modes, z, past, *parameters, gifts, 8)),
        (piece._summary_of_gradients, (dy, z, past, *parameters[:4], 8)),
        (piece._gradients, (added, dy, modes, back, z, past, *parameters, gifts, 8)),
        (piece._gradients, (added, dy, modes, back, z, past, parameters[0], None, *parameters[2:], gifts, 8)),
    ]:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"N": 33}, "hyena_li_piece: the Triton kernels cannot run here: there are 33 modes a channel; .* at most 32"),
        ({"F": 5}, "hyena_li_piece: the Triton kernels cannot run here: the featurizer has 5 taps; .* at most 4"),
    ],
)
def test_what_the_kernels_cannot_run_is_said(change: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        begin(inputs(4, **change))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("L", "B", "D", "F"), [(1, 1, 64, 3), (3, 2, 67, 4), (1000, 3, 64, 1), (4097, 1, 1920, 3), (8192, 1, 4096, 3)]
)
def test_gpu_the_halves_are_the_operator(L: int, B: int, D: int, F: int, dtype: torch.dtype) -> None:
    comparison.check(call, by_reference, inputs(L, B=B, D=D, N=16, F=F, dtype=dtype), TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [64, 256, 1024])
def test_gpu_every_length_of_segment(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "segment_rows", lambda B, L, D: rows)
    monkeypatch.setattr(piece, "segment_rows", lambda B, L, D: rows)
    values = inputs(4097, D=64, N=16)
    comparison.check(lambda values: divided(values, [1000, 3000], Backend.TRITON), by_reference, values, 3e-6)
