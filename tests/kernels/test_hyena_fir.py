"""The Triton kernels of Hyena-SE and Hyena-MR against their definition; in Triton's interpreter on a CPU."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import FirState, hyena_fir, hyena_fir_step
from kernels.backend import Backend
from tests.kernels import definitions
from tests.kernels.comparison import (
    DEVICE,
    LAYOUTS,
    Values,
    check,
    in_pieces,
    outputs_and_gradients,
    wide,
)

# tensor cores take the gated input, its gradient and the taps in z's dtype
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
STATE = ("past", "state")

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of so few rows that a short sequence has several, whole ones and one cut off."""
    from kernels.hyena_fir import launch

    monkeypatch.setattr(launch, "rows_a_program", lambda B, L, abreast, least, most: least)


def inputs(
    L: int,
    *,
    B: int = 1,
    D: int = 3,
    G: int = 1,
    K: int = 7,
    F: int = 3,
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
) -> Values:
    """Random inputs; a convolution leaves the size of its input as it is."""
    generator = torch.Generator().manual_seed(L)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    values = {
        "z": randn(B, L, 3 * D).to(dtype),
        "past": randn(B, F - 1, 3 * D).to(dtype),
        "state": randn(B, K - 1, D),
        "featurizer": randn(3 * D, F) / F**0.5,
        "bias": randn(3 * D),
        "taps": randn(G, K) / K**0.5,
        "skip": randn(D),
    }
    return {name: value for name, value in values.items() if name not in without}


def call(values: Values, backend: Backend = Backend.TRITON) -> tuple[Tensor, ...]:
    """The output and the two tensors of the state; a state comes in if the values have one."""
    state = FirState(values["past"], values["state"]) if "state" in values else None
    parameters = (values["featurizer"], values.get("bias"), values["taps"], values.get("skip"))
    y, new = hyena_fir(values["z"], *parameters, state, backend=backend)
    return y, *new


def by_reference(values: Values) -> tuple[Tensor, ...]:
    return call(values, Backend.REFERENCE)


def by_definition(values: Values) -> tuple[Tensor, ...]:
    """Explicit Toeplitz matrices; no state is a state of zeros."""
    z, featurizer, taps = values["z"], values["featurizer"], values["taps"]
    width = z.shape[2] // 3
    taps = taps.repeat_interleave(width // taps.shape[0], dim=0)
    past = values.get("past", z.new_zeros(z.shape[0], featurizer.shape[1] - 1, z.shape[2]))
    inner = values.get("state", z.new_zeros(z.shape[0], taps.shape[1] - 1, width))
    return definitions.continued_hyena(z, featurizer, values.get("bias"), taps, values.get("skip"), past, inner)


def tolerance(values: Values) -> float:
    dtype, taps = values["z"].dtype, values["taps"].shape[1]
    # of a few tokens alone, the taps' gradient is a handful of sums, and all of them may cancel
    if dtype is torch.bfloat16 and values["z"].shape[1] == 1:
        return 2 * TOLERANCE[dtype]
    # tensor cores cut their sums off where other arithmetic rounds them
    return 1e-5 if dtype is torch.float32 and taps > 16 and DEVICE == "cuda" else TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("L", "B", "D", "G", "K", "F", "dtype", "without"),
    [
        (1, 2, 3, 1, 7, 3, torch.float32, ()),
        (2, 1, 4, 2, 3, 4, torch.bfloat16, ()),
        (3, 1, 5, 5, 4, 1, torch.float32, ("bias", "skip")),
        (16, 1, 6, 2, 7, 3, torch.bfloat16, STATE),
        (17, 2, 3, 1, 7, 2, torch.float16, ("bias",)),
        (33, 1, 3, 3, 1, 3, torch.float32, ()),
        (31, 1, 6, 3, 2, 3, torch.float32, STATE),
        (32, 1, 4, 1, 4, 3, torch.float32, ("skip",)),
        (20, 1, 130, 13, 3, 2, torch.float32, ()),
        (35, 1, 2, 1, 14, 3, torch.float32, ()),
        (20, 1, 2, 1, 16, 1, torch.float32, ()),
    ],
)
def test_few_taps(
    small: None, L: int, B: int, D: int, G: int, K: int, F: int, dtype: torch.dtype, without: tuple[str, ...]
) -> None:
    values = inputs(L, B=B, D=D, G=G, K=K, F=F, dtype=dtype, without=without)
    check(call, by_definition, values, tolerance(values))


# group sizes 1 to 32, whole and partial tiles, beginning at odd channels too; filters that reach to the end of a block,
# and one and two rows further
@pytest.mark.parametrize(
    ("L", "B", "D", "G", "K", "F", "dtype", "without"),
    [
        (1, 2, 16, 1, 17, 2, torch.float32, ()),
        (2, 1, 6, 2, 17, 4, torch.float32, ("bias",)),
        (3, 1, 3, 3, 18, 1, torch.float16, ()),
        (64, 1, 16, 1, 17, 3, torch.float32, STATE),
        (50, 1, 15, 1, 18, 3, torch.float32, ()),
        (97, 1, 2, 2, 33, 3, torch.float32, ()),
        (50, 1, 20, 1, 34, 2, torch.float16, ("bias", "skip")),
        (16, 1, 32, 1, 48, 1, torch.float32, ()),
        (50, 1, 9, 3, 64, 3, torch.float32, STATE),
        (129, 1, 16, 1, 128, 1, torch.float32, ()),
        (20, 1, 2, 2, 129, 3, torch.float16, ()),
        (20, 1, 16, 1, 256, 1, torch.float32, ()),
        (1024, 1, 2, 2, 17, 2, torch.float32, ()),
        (50, 1, 30, 2, 20, 3, torch.float16, ()),
        (40, 1, 51, 3, 17, 3, torch.float32, ("bias",)),
        (40, 1, 34, 2, 17, 2, torch.float16, STATE),
        (33, 1, 10, 2, 18, 3, torch.float32, ()),
    ],
)
def test_many_taps(
    small: None, L: int, B: int, D: int, G: int, K: int, F: int, dtype: torch.dtype, without: tuple[str, ...]
) -> None:
    values = inputs(L, B=B, D=D, G=G, K=K, F=F, dtype=dtype, without=without)
    check(call, by_definition, values, tolerance(values))


@pytest.mark.parametrize("segments", [1, 2, 16, 32])
def test_the_rows_of_a_program_fill_blocks_and_reach_as_far_back_as_the_filter(segments: int) -> None:
    from kernels.hyena_fir import launch

    for K, L, programs in itertools.product(range(17, 257), [1, 129, 1000, 32768, 1 << 20], [1, 64, 512]):
        rows = launch.rows_a_walk(1, L, K, programs, segments)
        assert rows % (16 * segments) == 0
        assert rows >= 16 * ((K + 14) // 16)


@pytest.mark.parametrize(("K", "cuts", "examples"), [(3, 2, 4), (17, 1, 2)])
def test_pieces_joined_equal_one_pass_with_gradients(small: None, K: int, cuts: int, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.sets(st.integers(1, 19), min_size=1, max_size=cuts))
    def joined(at: set[int]) -> None:
        def pieces(values: Values) -> tuple[Tensor, ...]:
            return in_pieces(call, values, sorted(at))

        check(pieces, by_definition, inputs(20, D=2, G=2, K=K, F=2), 5e-6)

    joined()


@pytest.mark.parametrize(("K", "length"), [(4, 20), (17, 40)])
def test_two_runs_give_the_same_bits(small: None, K: int, length: int) -> None:
    one, other = (outputs_and_gradients(call, inputs(length, D=2, K=K)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("K", "layout"), [*((3, layout) for layout in LAYOUTS), (17, "part of longer sequences")])
def test_any_strides(small: None, K: int, layout: str) -> None:
    def laid_out(values: Values) -> tuple[Tensor, ...]:
        return call({**values, "z": LAYOUTS[layout](values["z"])})

    check(laid_out, by_definition, inputs(9, B=2, K=K, F=2), 3e-6)


@pytest.mark.parametrize("K", [3, 17])
def test_parameters_and_states_at_any_strides(small: None, K: int) -> None:
    def spread(values: Values) -> tuple[Tensor, ...]:
        return call({n: x if n == "z" else x.repeat_interleave(2, dim=-1)[..., ::2] for n, x in values.items()})

    check(spread, by_definition, inputs(9, D=4, G=2, K=K, F=2), 3e-6)


def test_the_state_keeps_no_input_alive(small: None) -> None:
    _, past, inner = call(inputs(40))
    for part in (past, inner):
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


@pytest.mark.parametrize(("K", "without"), [(3, STATE), (17, ())])
def test_an_operator_compiles_in_one_graph(small: None, K: int, without: tuple[str, ...]) -> None:
    values = inputs(9, D=2, K=K, without=without)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    one, other = (outputs_and_gradients(function, values) for function in (call, compiled))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"K": 257}, "hyena_fir: the Triton kernels cannot run here: 257 inner taps; the kernels take at most 256"),
        ({"dtype": torch.float64}, "hyena_fir: the Triton kernels cannot run here: the dtype is torch.float64"),
    ],
)
def test_what_the_kernels_cannot_run_is_said_and_left_to_the_reference(change: dict[str, Any], text: str) -> None:
    values = inputs(5, **change)
    with pytest.raises(ValueError, match=text):
        call(values)
    for got, want in zip(call(values, Backend.AUTO), call(values, Backend.REFERENCE), strict=True):
        assert torch.equal(got, want)


STEPS = [
    (3, 1, 7, 3, torch.float32, ()),
    (4, 4, 2, 1, torch.bfloat16, ("bias", "skip")),
    (5, 1, 1, 4, torch.float32, ()),
    (6, 2, 7, 3, torch.bfloat16, ("skip",)),
    (15, 1, 128, 3, torch.float32, ("bias",)),
    (48, 3, 40, 1, torch.float16, ()),
    (33, 33, 33, 3, torch.float32, ()),
    (16, 1, 34, 3, torch.bfloat16, ()),
]


def check_steps(values: Values, prefill: int, backend: Backend) -> None:
    """Compare single steps after a prefill with one pass, and the state, moved in place, with its state."""
    want, want_past, want_inner = by_definition(wide(values))
    if prefill:
        _, past, inner = call({**values, "z": values["z"][:, :prefill]}, backend)
    else:
        past, inner = values["past"].clone(), values["state"].clone()
    state = FirState(past, inner)
    places = [part.data_ptr() for part in state]
    parameters = (values["featurizer"], values.get("bias"), values["taps"], values.get("skip"))
    for t in range(prefill, want.shape[1]):
        y = hyena_fir_step(values["z"][:, t], *parameters, state, backend=backend)
        assert y.dtype is values["z"].dtype
        assert definitions.relative_error(y, want[:, t]) < TOLERANCE[y.dtype]
    assert [part.data_ptr() for part in state] == places
    assert torch.equal(state.featurizer_BPE, want_past.to(values["z"].dtype))
    assert definitions.relative_error(state.inner_BPD, want_inner) < 1e-6


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize(("D", "G", "K", "F", "dtype", "without"), STEPS)
def test_steps_equal_one_pass_and_move_the_state_in_place(
    D: int, G: int, K: int, F: int, dtype: torch.dtype, without: tuple[str, ...], backend: Backend
) -> None:
    values = inputs(4, B=2, D=D, G=G, K=K, F=F, dtype=dtype, without=without)
    check_steps(values, 0, backend)


@pytest.mark.parametrize("backend", [Backend.TRITON, Backend.REFERENCE])
@pytest.mark.parametrize("K", [7, 17])
def test_steps_continue_a_prefill(K: int, backend: Backend) -> None:
    check_steps(inputs(12, K=K, without=STATE), 8, backend)


def test_a_step_compiles_in_one_graph() -> None:
    values = inputs(1, B=2, D=4)
    parameters = tuple(values[name] for name in ("featurizer", "bias", "taps", "skip"))

    def step(z: Tensor, past: Tensor, inner: Tensor) -> Tensor:
        return hyena_fir_step(z, *parameters, FirState(past, inner), backend=Backend.TRITON)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        state = values["past"].clone(), values["state"].clone()
        results.append((function(values["z"][:, 0], *state), *state))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_state_that_a_step_cannot_move_in_place_is_said_and_left_to_the_reference() -> None:
    values = inputs(1, D=2)
    parameters = tuple(values[name] for name in ("featurizer", "bias", "taps", "skip"))
    want, want_past, want_inner = call(values, Backend.REFERENCE)
    for past, inner, text in [
        (values["past"], values["state"].mT.contiguous().mT, "the state's tensors are not contiguous"),
        (values["past"].double(), values["state"], "the state holds torch.float64 and torch.float32, not"),
    ]:
        state = FirState(past.clone(), inner.clone())
        with pytest.raises(ValueError, match=f"hyena_fir_step: the Triton kernels cannot run here: {text}"):
            hyena_fir_step(values["z"][:, 0], *parameters, state, backend=Backend.TRITON)
        assert torch.equal(hyena_fir_step(values["z"][:, 0], *parameters, state), want[:, 0])
        assert torch.equal(state.featurizer_BPE.float(), want_past)
        assert torch.equal(state.inner_BPD, want_inner)


# D, G, K, F, dtype, without: every one is compiled anew
GPU_FEW = [
    (64, 1, 3, 3, torch.float32, ()),
    (64, 64, 4, 4, torch.bfloat16, ("bias", "skip")),
    (67, 1, 14, 2, torch.float32, ("skip",)),
    (96, 3, 16, 3, torch.float32, ()),
    (96, 96, 1, 1, torch.float16, ("bias",)),
    (1920, 128, 7, 3, torch.bfloat16, ()),
    (4096, 256, 7, 3, torch.bfloat16, ("bias", "skip")),
    (8192, 512, 16, 3, torch.bfloat16, ()),
]
GPU_MANY = [
    (64, 1, 64, 3, torch.float32, ()),
    (64, 4, 17, 3, torch.float32, ()),
    (64, 64, 64, 3, torch.bfloat16, ()),
    (67, 67, 34, 4, torch.float32, ("bias",)),
    (96, 32, 33, 2, torch.float32, ("skip",)),
    (128, 8, 129, 3, torch.float32, ()),
    (128, 4, 130, 3, torch.bfloat16, ()),
    (160, 8, 128, 1, torch.float16, ()),
    (68, 4, 40, 3, torch.bfloat16, ()),
    (320, 16, 256, 3, torch.bfloat16, ()),
    (320, 16, 256, 3, torch.float32, ()),
    (1920, 128, 128, 3, torch.bfloat16, ("bias",)),
    (1920, 1920, 128, 3, torch.bfloat16, ("bias",)),
    (4096, 256, 128, 3, torch.bfloat16, ("bias",)),
    (8192, 512, 128, 3, torch.bfloat16, ("bias",)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("D", "G", "K", "F", "dtype", "without"), [*GPU_FEW, *GPU_MANY])
def test_gpu_outputs_and_gradients(
    D: int, G: int, K: int, F: int, dtype: torch.dtype, without: tuple[str, ...]
) -> None:
    lengths = [1, 2, 3, 127, 128, 129, 1000, 4097] if D < 1000 else [1, 128, 1000, 4097]
    for L, B, stateless in itertools.product(lengths, [1, 3], [(), STATE]):
        if D < 1000 or B * L < 5000:
            values = inputs(L, B=B, D=D, G=G, K=K, F=F, dtype=dtype, without=(*without, *stateless))
            check(call, by_reference, values, tolerance(values))


@pytest.mark.gpu
@pytest.mark.parametrize(("K", "G"), [(7, 4), (128, 4), (130, 64)])
def test_gpu_pieces_strides_and_repeated_runs(K: int, G: int) -> None:
    values = inputs(1000, B=2, D=64, G=G, K=K)
    one, other = (outputs_and_gradients(call, values) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for cuts in ([1], [300, 301], [16, 130, 700]):
        check(lambda values, cuts=cuts: in_pieces(call, values, cuts), by_reference, values, 1e-5)
    for layout in LAYOUTS.values():
        check(lambda values, f=layout: call({**values, "z": f(values["z"])}), by_reference, values, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("D", "G", "K", "F", "dtype", "without"), [*STEPS, (4096, 256, 128, 3, torch.bfloat16, ("bias",))]
)
def test_gpu_steps(D: int, G: int, K: int, F: int, dtype: torch.dtype, without: tuple[str, ...]) -> None:
    for B in (1, 3):
        check_steps(inputs(9, B=B, D=D, G=G, K=K, F=F, dtype=dtype, without=without), 0, Backend.TRITON)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch 2.11's own compiler
@pytest.mark.parametrize("K", [7, 128])
def test_gpu_an_operator_compiles_in_one_graph(K: int) -> None:
    values = inputs(333, D=64, G=4, K=K)
    compiled = torch.compile(call, fullgraph=True)
    one, other = (outputs_and_gradients(function, values) for function in (call, compiled))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
@pytest.mark.usefixtures("all_memory")
@pytest.mark.parametrize("K", [7, 128])
def test_gpu_a_million_rows_reach_beyond_32_bits(K: int) -> None:
    torch.use_deterministic_algorithms(False)  # no memory to spare
    values = inputs(1, D=4096, G=256, K=K, dtype=torch.bfloat16, without=STATE)
    z = torch.randn(1, 1 << 20, 3 * 4096, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        _, past, inner = call(values | {"z": z[:, :-300]})
    tail = wide(values | {"z": z[:, -300:], "past": past, "state": inner})
    tail["z"].requires_grad_()
    want, _, want_inner = by_reference(tail)
    dy = torch.randn(1, 300, 4096, device=DEVICE, dtype=torch.bfloat16)
    (want_dz,) = torch.autograd.grad(want, tail["z"], dy.double())

    y, _, last = call(values | {"z": z.requires_grad_()})
    assert definitions.relative_error(y[:, -300:], want) < TOLERANCE[torch.bfloat16]
    assert definitions.relative_error(last, want_inner) < 1e-5
    whole_dy = torch.ones_like(y)
    whole_dy[:, -300:] = dy
    (dz,) = torch.autograd.grad(y, z, whole_dy)
    assert definitions.relative_error(dz[:, -300:], want_dz) < TOLERANCE[torch.bfloat16]
