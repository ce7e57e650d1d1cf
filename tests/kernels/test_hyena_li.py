"""Hyena-LI's Triton kernels against the reference and the definition in float64; in Triton's interpreter on a CPU."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import ModalState, hyena_li
from kernels.backend import Backend
from kernels.hyena_li import hyena_li_step, operator, reference
from tests.kernels import comparison, definitions
from tests.kernels.comparison import DEVICE, LAYOUTS, Values, in_pieces, outputs_and_gradients, wide

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 8 rows, groups of 4, programs of 4 channels: a short sequence then has some of everything."""
    from kernels.hyena_li import backward, forward, piece

    options = {"C": 4, "U": 4, "num_warps": 1}
    for module, name in [
        (forward, "STATES"),
        (forward, "OUTPUT"),
        *((backward, n) for n in ("ADJOINTS", "UP", "DOWN")),
    ]:
        monkeypatch.setattr(module, name, options)
    monkeypatch.setattr(operator, "segment_rows", lambda B, L, D: 8)
    monkeypatch.setattr(piece, "segment_rows", lambda B, L, D: 8)


def inputs(
    L: int, *, B: int = 1, D: int = 3, N: int = 2, F: int = 3, dtype: torch.dtype = torch.float32, device: str = DEVICE
) -> Values:
    """Random inputs, with poles from nearly 1 to nearly 0 and one residue of 0."""
    generator = torch.Generator().manual_seed(L)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    values = {
        "z": randn(B, L, 3 * D).to(dtype),
        "past": randn(B, F - 1, 3 * D).to(dtype),
        "featurizer": randn(3 * D, F),
        "bias": randn(3 * D),
        "log_poles": -torch.exp(torch.rand(D, N, generator=generator) * 10.8 - 9.2).to(device),
        "residues": randn(D, N) / N,
        "skip": randn(D),
        "state": randn(B, D, N),
    }
    values["residues"][0, 0] = 0
    return values


def call(values: Values) -> tuple[Tensor, ...]:
    """The output and the two tensors of the state; a state comes in if the values have one."""
    y, new = hyena_li(*arguments(values), backend=Backend.TRITON)
    return y, *new


def by_reference(values: Values) -> tuple[Tensor, ...]:
    y, new = reference.hyena_li(*arguments(values))
    return y, *new


def arguments(values: Values) -> tuple[Any, ...]:
    state = ModalState(values["past"], values["state"]) if "state" in values else None
    parameters = (values["featurizer"], values.get("bias"), *(values[n] for n in ("log_poles", "residues", "skip")))
    return values["z"], *parameters, state


def check(values: Values) -> None:
    comparison.check(call, by_reference, values, TOLERANCE[values["z"].dtype])


@pytest.mark.parametrize(
    ("L", "B", "F", "dtype", "without"),
    [
        (1, 2, 3, torch.float32, ()),
        (1, 1, 4, torch.float32, ()),
        (2, 1, 4, torch.float32, ("bias",)),
        (3, 1, 1, torch.float32, ()),
        (8, 1, 3, torch.bfloat16, ("past", "state")),
        (9, 1, 4, torch.float32, ()),
        (10, 1, 1, torch.bfloat16, ()),
        (11, 1, 4, torch.float16, ("bias",)),
        (16, 1, 3, torch.float32, ("past", "state")),
        (19, 1, 3, torch.float32, ()),
        (22, 2, 2, torch.float32, ("bias",)),
    ],
)
def test_outputs_and_gradients_are_those_of_the_reference_in_float64(
    small: None, L: int, B: int, F: int, dtype: torch.dtype, without: tuple[str, ...]
) -> None:
    values = inputs(L, B=B, F=F, dtype=dtype, D=5 if B > 1 else 3)
    check({name: value for name, value in values.items() if name not in without})


@pytest.mark.parametrize("modes", [1, 16, 32])
def test_any_number_of_modes(small: None, modes: int) -> None:
    check(inputs(9, D=2, N=modes))


def test_the_output_is_equation_one(small: None) -> None:
    values = inputs(21, B=2)
    del values["past"], values["state"]
    taps = definitions.modal_filter(values["log_poles"].cpu(), values["residues"].cpu(), 21)
    parts = [values[name].cpu() for name in ("z", "featurizer", "bias")]
    want = definitions.hyena(*parts, taps, values["skip"].cpu())
    assert definitions.relative_error(call(values)[0].cpu(), want) < 1e-6


@settings(max_examples=5, deadline=None)
@given(cuts=st.sets(st.integers(1, 10), min_size=1, max_size=2))
def test_pieces_joined_equal_one_pass_with_gradients(cuts: set[int]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small.__wrapped__(monkeypatch)
        values = inputs(11, D=2, N=1)
        whole = outputs_and_gradients(call, values)
        pieces = outputs_and_gradients(lambda values: in_pieces(call, values, sorted(cuts)), values)
    for name, value in whole.items():
        assert definitions.relative_error(pieces[name], value) < 3e-6, name


def test_two_runs_give_the_same_bits(small: None) -> None:
    one, other = (outputs_and_gradients(call, inputs(13)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(small: None, layout: str) -> None:
    values = inputs(10, B=2)
    got = call({**values, "z": LAYOUTS[layout](values["z"])})
    assert all(torch.equal(one, other) for one, other in zip(got, call(values), strict=True))


def test_the_state_keeps_no_input_alive(small: None) -> None:
    values = inputs(10)
    _, past, _ = call(values)
    assert past.untyped_storage().nbytes() == past.numel() * past.element_size()


def test_an_operator_compiles_in_one_graph(small: None) -> None:
    values = {name: value for name, value in inputs(9, D=2).items() if name not in ("past", "state")}

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    one, other = (outputs_and_gradients(function, values) for function in (call, compiled))
    for name, value in one.items():
        assert definitions.relative_error(other[name], value) < 1e-6, name


@pytest.mark.parametrize("F", [1, 3, 4])
@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_one_pass_and_move_the_state_in_place(F: int, backend: Backend, dtype: torch.dtype) -> None:
    values = inputs(6, B=2, D=5, N=3, F=F, dtype=dtype)
    want, want_past, want_modes = by_reference(wide(values))
    state = ModalState(values["past"].clone(), values["state"].clone())
    parameters = [values[name] for name in ("featurizer", "bias", "log_poles", "residues", "skip")]
    for t in range(6):
        y = hyena_li_step(values["z"][:, t], *parameters, state, backend=backend)
        assert definitions.relative_error(y, want[:, t]) < TOLERANCE[dtype]
    assert torch.equal(state.featurizer_BPE, want_past.to(dtype))
    assert definitions.relative_error(state.modes_BDN, want_modes) < 1e-6


def test_a_thousand_steps_lose_nothing_of_a_slow_pole() -> None:
    values = inputs(1, D=4, N=2)
    values["log_poles"] = torch.full((4, 2), -1e-4, device=DEVICE)
    parameters = [values[name] for name in ("featurizer", "bias", "log_poles", "residues", "skip")]
    state = ModalState(values["past"], values["state"])
    steps = 300
    for _ in range(steps):
        hyena_li_step(values["z"][:, 0], *parameters, state, backend=Backend.TRITON)
    repeated = inputs(1, D=4, N=2) | {"z": values["z"].repeat(1, steps, 1), "log_poles": values["log_poles"]}
    assert definitions.relative_error(state.modes_BDN, by_reference(wide(repeated))[2]) < 1e-6


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"N": 33}, "hyena_li: the Triton kernels cannot run here: there are 33 modes a channel; .* at most 32"),
        ({"F": 5}, "hyena_li: the Triton kernels cannot run here: the featurizer has 5 taps; .* at most 4"),
        ({"dtype": torch.float64}, "hyena_li: the Triton kernels cannot run here: the dtype is torch.float64"),
    ],
)
def test_what_the_kernels_cannot_run_is_said_and_left_to_the_reference(change: dict[str, object], text: str) -> None:
    values = inputs(4, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=text):
        call(values)
    y, _ = hyena_li(*(values[n] for n in ("z", "featurizer", "bias", "log_poles", "residues", "skip")))
    assert y.shape == (1, 4, 3)


def test_a_state_that_a_step_cannot_move_in_place_is_said() -> None:
    values = inputs(4)
    parameters = [values[name] for name in ("featurizer", "bias", "log_poles", "residues", "skip")]
    for state, text in [
        (ModalState(values["past"], values["state"].mT.contiguous().mT), "the state's tensors are not contiguous"),
        (ModalState(values["past"].half(), values["state"]), "the state holds torch.float16 and torch.float32, not"),
    ]:
        with pytest.raises(ValueError, match=text):
            hyena_li_step(values["z"][:, 0], *parameters, state, backend=Backend.TRITON)


GPU_SHAPES = [
    *itertools.product([1, 2, 3, 127, 128, 129, 1000, 4097], [1, 3], [64]),
    (300, 1, 8192),
    (513, 2, 1920),
    (700, 1, 67),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("F", "without"), [(3, ("bias", "past", "state")), (4, ()), (1, ("bias",))])
@pytest.mark.parametrize(("L", "B", "D"), GPU_SHAPES)
def test_gpu_outputs_and_gradients(
    L: int, B: int, D: int, F: int, without: tuple[str, ...], dtype: torch.dtype
) -> None:
    values = inputs(L, B=B, D=D, N=16, F=F, dtype=dtype)
    check({name: value for name, value in values.items() if name not in without})


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [64, 128, 256, 512, 1024])
def test_gpu_every_length_of_segment(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "segment_rows", lambda B, L, D: rows)
    check(inputs(4097, D=64, N=16))
    one, other = (outputs_and_gradients(call, inputs(4097, D=64, N=16)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
@pytest.mark.usefixtures("all_memory")
def test_gpu_a_million_rows_reach_beyond_32_bits() -> None:
    values = inputs(1, D=4096, N=16, dtype=torch.bfloat16)
    values["z"] = torch.randn(1, 1 << 20, 3 * 4096, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        whole, _, whole_modes = call(values)
        head = values | {"z": values["z"][:, :-300]}
        _, past, modes = call(head)
        tail = values | {"z": values["z"][:, -300:], "past": past, "state": modes}
        want, _, want_modes = by_reference(wide(tail))
    assert definitions.relative_error(whole[:, -300:], want) < TOLERANCE[torch.bfloat16]
    assert definitions.relative_error(whole_modes, want_modes) < 1e-5
