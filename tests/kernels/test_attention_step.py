"""Attention of one query a row against its definition in float64, row by row; the kernels in Triton's interpreter."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import attention_append, attention_step, unpack
from kernels.attention_step import operator
from kernels.attention_step import step as triton_step
from kernels.backend import Backend
from tests.kernels.comparison import DEVICE
from tests.kernels.definitions import relative_error

# Triton's interpreter cuts bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
BACKENDS = [Backend.TRITON, Backend.REFERENCE]

pytestmark = pytest.mark.usefixtures("poisoned")

Cache = dict[str, Tensor]


def cache(B: int, S: int, J: int, C: int, dtype: torch.dtype, *, codes: bool, device: str = DEVICE) -> Cache:
    """Random keys and values, of very different sizes from token to token."""
    generator = torch.Generator().manual_seed(S)
    sizes = {name: torch.rand(B, S, J, generator=generator) * 3 + 0.01 for name in ("keys", "values")}
    numbers = {name: torch.randn(B, S, J, C, generator=generator) for name in sizes}
    if not codes:
        return {name: (number * sizes[name][..., None]).to(device, dtype) for name, number in numbers.items()}
    packed = {name: number.to(torch.float8_e4m3fn).view(torch.uint8).to(device) for name, number in numbers.items()}
    return packed | {f"{name} units": size.to(device) for name, size in sizes.items()}


def queries(B: int, H: int, C: int, dtype: torch.dtype, device: str = DEVICE) -> Tensor:
    return torch.randn(B, H, C, generator=torch.Generator().manual_seed(H)).to(device, dtype)


def step(q: Tensor, past: Cache, backend: Backend, **bounds: Tensor | None) -> Tensor:
    units = past.get("keys units"), past.get("values units")
    return attention_step(q, past["keys"], past["values"], *units, backend=backend, **bounds)


def by_definition(q: Tensor, past: Cache, begins: list[int], ends: list[int]) -> Tensor:
    """Row by row and head by head, in float64."""
    numbers = {}
    for name in ("keys", "values"):
        numbers[name] = past[name].cpu()
        if f"{name} units" in past:
            codes = numbers[name].view(torch.float8_e4m3fn).double()
            numbers[name] = codes * past[f"{name} units"].cpu().double()[..., None]
    B, H, C = q.shape
    y = torch.empty(B, H, C, dtype=torch.float64)
    group = H // past["keys"].shape[2]
    for b, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        for h in range(H):
            k, v = (numbers[name][b, begin:end, h // group].double() for name in ("keys", "values"))
            y[b, h] = (k @ q[b, h].cpu().double() / math.sqrt(C)).softmax(dim=0) @ v
    return y.to(q.device)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("B", "S", "H", "J", "C", "dtype"),
    [
        (1, 1, 1, 1, 4, torch.float32),
        (2, 33, 2, 2, 8, torch.bfloat16),
        (1, 150, 6, 2, 5, torch.float32),
        (3, 70, 4, 1, 16, torch.float16),
        (2, 64, 3, 3, 12, torch.float32),
    ],
)
def test_every_row_sees_its_own_entries_and_no_other(
    B: int, S: int, H: int, J: int, C: int, dtype: torch.dtype, backend: Backend, codes: bool
) -> None:
    q, past = queries(B, H, C, dtype), cache(B, S, J, C, dtype, codes=codes)
    begins, ends = [S * b // (2 * B) for b in range(B)], [S - S * b // 4 for b in range(B)]
    want = by_definition(q, past, begins, ends)
    # what a row does not have may be anything
    for b, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        for name, tensor in past.items():
            tensor[b, :begin] = tensor[b, end:] = 0x7E if codes and "units" not in name else 1e4
    bounds = {"begin_B": torch.tensor(begins, device=DEVICE), "end_B": torch.tensor(ends, device=DEVICE)}
    assert relative_error(step(q, past, backend, **bounds), want) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bounds_rows_see_everything(backend: Backend) -> None:
    q, past = queries(2, 2, 8, torch.float32), cache(2, 45, 2, 8, torch.float32, codes=False)
    assert relative_error(step(q, past, backend), by_definition(q, past, [0, 0], [45, 45])) < 1e-6
    begin_B = torch.tensor([0, 44], device=DEVICE)
    want = by_definition(q, past, [0, 44], [45, 45])
    assert relative_error(step(q, past, backend, begin_B=begin_B), want) < 1e-6


@settings(max_examples=15, deadline=None)
@given(begin=st.integers(0, 129), length=st.integers(1, 130), X=st.sampled_from([1, 2, 8]))
def test_the_splits_put_together_are_the_whole(begin: int, length: int, X: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(triton_step, "splits", lambda programs, S: X)
        begin, end = min(begin, 129), min(begin + length, 130)
        q, past = queries(1, 2, 4, torch.float32), cache(1, 130, 1, 4, torch.float32, codes=False)
        bounds = {"begin_B": torch.tensor([begin], device=DEVICE), "end_B": torch.tensor([end], device=DEVICE)}
        got = step(q, past, Backend.TRITON, **bounds)
    assert relative_error(got, by_definition(q, past, [begin], [end])) < 1e-6


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    q, past = queries(1, 1, 4, torch.float32), cache(1, 80, 1, 4, torch.float32, codes=False)
    past["keys"] *= 1e4
    assert relative_error(step(q, past, Backend.TRITON), by_definition(q, past, [0], [80])) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_may_be_part_of_longer_rows(backend: Backend) -> None:
    q, past = queries(2, 2, 8, torch.float32), cache(2, 60, 2, 8, torch.float32, codes=True)
    part = {name: tensor[:, :40] for name, tensor in past.items()}
    assert torch.equal(step(q, part, backend), step(q, {n: t.clone() for n, t in part.items()}, backend))


@pytest.mark.parametrize(
    ("programs", "S", "want"), [(32, 131_072, 16), (2048, 1 << 20, 1), (1, 1 << 20, 512), (1, 64, 1)]
)
def test_a_large_gpu_is_filled_by_few_rows(programs: int, S: int, want: int) -> None:
    assert triton_step.splits(programs, S) == want
    assert programs * triton_step.splits(programs, 1 << 20) >= 512


def test_the_operator_compiles_in_one_graph() -> None:
    q, past = queries(2, 2, 8, torch.float32), cache(2, 40, 2, 8, torch.float32, codes=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, past, Backend.TRITON), step(q, past, Backend.TRITON))


@pytest.mark.parametrize(
    ("C", "dtype", "text"),
    [
        (264, torch.float32, "a head has 264 channels; the kernels take at most 256"),
        (8, torch.float64, "the dtype is torch.float64"),
    ],
)
def test_what_the_kernels_cannot_run_is_said_and_left_to_the_reference(C: int, dtype: torch.dtype, text: str) -> None:
    q, past = queries(1, 2, C, dtype), cache(1, 9, 2, C, dtype, codes=False)
    with pytest.raises(ValueError, match=f"attention_step: the Triton kernels cannot run here: {text}"):
        step(q, past, Backend.TRITON)
    assert relative_error(step(q, past, Backend.AUTO), by_definition(q, past, [0], [9])) < 1e-6


def test_limits_know_which_gpus_have_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        shape, is_cuda, device = (1, 2, 8), True, "cuda:0"

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    keys = torch.empty(1, 1, 2, 8, dtype=torch.uint8)
    for capability, limit in (((8, 0), "A100 does not know FP8"), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, has=capability: has)
        assert operator.limit(OnGpu(), keys) == limit  # type: ignore[arg-type]


def appended(
    S: int, H: int, J: int, C: int, ends: list[int], dtype: torch.dtype, backend: Backend, *, codes: bool
) -> tuple[Tensor, Cache, Tensor, Tensor]:
    """The rotated queries, the cache and the ends after an append of random heads, and the heads."""
    B = len(ends)
    past = cache(B, S, J, C, dtype, codes=codes)
    z = torch.randn(B, (H + 2 * J) * C, generator=torch.Generator().manual_seed(C))
    z = z.clamp(-3.5, 3.5).to(torch.float8_e4m3fn).to(DEVICE, dtype)
    z[:, ::C] = 3.5  # of every head's numbers the largest: 448 by a power of two, and so all are E4M3 already
    frequencies = (1e4 ** -(torch.arange(0, C, 2) / C)).to(DEVICE)
    end_B = torch.tensor(ends, device=DEVICE)
    entries = past["keys"], past["values"], past.get("keys units"), past.get("values units")
    q = attention_append(z, frequencies, 4.0, *entries, end_B, backend=backend)
    return q, past, end_B, z.unflatten(1, (-1, C))


def check_append(S: int, H: int, J: int, C: int, dtype: torch.dtype, backend: Backend, *, codes: bool) -> None:
    """Rotation by its definition, with complex numbers; a row that is full stays, and loses its last."""
    ends = [0, S - 1, S, 3]
    q, past, end_B, heads = appended(S, H, J, C, ends, dtype, backend, codes=codes)
    assert end_B.tolist() == [1, S, S, 4]
    before = cache(len(ends), S, J, C, dtype, codes=codes)
    # Triton's interpreter rounds to E4M3 without carrying: 127.9 becomes 64
    keys_error = 0.3 if backend is Backend.TRITON and DEVICE == "cpu" else 0.04
    frequencies = 1e4 ** -(torch.arange(0, C, 2, dtype=torch.float64) / C)
    for b, end in enumerate(ends):
        # the largest angle of all, of pair 0, is end / 4 radians, and is rounded in float32
        error = 3 * TOLERANCE[dtype] + end / 4.0 * torch.finfo(torch.float32).eps
        turn = torch.polar(torch.ones(C // 2, dtype=torch.float64), end / 4.0 * frequencies)
        pairs = torch.complex(*heads[b].cpu().double().chunk(2, dim=-1)) * turn
        turned = torch.cat([pairs.real, pairs.imag], dim=-1).to(DEVICE)
        assert relative_error(q[b], turned[:H]) < error
        place = min(end, S - 1)
        for name, want in (("keys", turned[H : H + J]), ("values", heads[b, H + J :].double())):
            got = past[name][b, place]
            if codes:
                units = past[f"{name} units"][b, place]
                assert relative_error(units * 448, want.abs().amax(dim=-1)) < error
                got = unpack(got, units)
            assert relative_error(got, want) < (keys_error if codes and name == "keys" else error)
        for name, tensor in past.items():
            others = torch.arange(S, device=DEVICE) != place
            assert torch.equal(tensor[b, others], before[name][b, others])


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("S", "H", "J", "C", "dtype"),
    [
        (5, 1, 1, 2, torch.float32),
        (9, 4, 2, 6, torch.float32),
        (8, 3, 3, 16, torch.bfloat16),
        (7, 4, 1, 8, torch.float16),
    ],
)
def test_a_token_is_rotated_and_put_behind_the_last(
    S: int, H: int, J: int, C: int, dtype: torch.dtype, backend: Backend, codes: bool
) -> None:
    check_append(S, H, J, C, dtype, backend, codes=codes)


def test_a_head_of_zeros_and_one_that_overflows_have_units_of_one() -> None:
    for backend in BACKENDS:
        z = torch.tensor([[1.0, 2.0, 0.0, 0.0, torch.inf, 1.0]], device=DEVICE)
        codes = [torch.zeros(1, 3, 1, 2, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
        units = [torch.zeros(1, 3, 1, device=DEVICE) for _ in range(2)]
        end_B = torch.tensor([1], device=DEVICE)
        attention_append(z, torch.ones(1, device=DEVICE), 1.0, *codes, *units, end_B, backend=backend)
        assert [float(unit[0, 1, 0]) for unit in units] == [1.0, 1.0]
        assert unpack(codes[0], units[0])[0, 1, 0].tolist() == [0.0, 0.0]
        assert unpack(codes[1], units[1])[0, 1, 0].tolist() == [448.0, 1.0]


def test_a_cache_in_pieces_is_said() -> None:
    keys = torch.zeros(1, 2, 3, 4, device=DEVICE).transpose(1, 2)
    z, frequencies = torch.zeros(1, 20, device=DEVICE), torch.ones(2, device=DEVICE)
    cache_of = keys, keys, None, None, torch.tensor([0], device=DEVICE)
    with pytest.raises(ValueError, match="the Triton kernels cannot run here: a row of the cache is not in one piece"):
        attention_append(z, frequencies, 1.0, *cache_of, backend=Backend.TRITON)


@pytest.mark.gpu
@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("S", "H", "J", "C"), [(2000, 32, 32, 128), (300, 15, 15, 128), (40, 8, 2, 64)])
def test_gpu_a_token_is_rotated_and_put_behind_the_last(
    S: int, H: int, J: int, C: int, dtype: torch.dtype, codes: bool
) -> None:
    if codes and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not know FP8")
    check_append(S, H, J, C, dtype, Backend.TRITON, codes=codes)


@pytest.mark.gpu
def test_gpu_a_position_beyond_a_million_is_rotated_as_plain_torch_rotates_it() -> None:
    S = (1 << 20) + 9
    results = []
    for backend in BACKENDS:
        q, past, _, _ = appended(S, 2, 1, 64, [S - 2], torch.float32, backend, codes=False)
        results.append(torch.cat([q.flatten(), past["keys"][0, S - 2].flatten()]))
    assert relative_error(results[0], results[1]) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("B", "S", "H", "J", "C"),
    [(1, 1, 32, 32, 128), (1, 5000, 32, 32, 128), (3, 1111, 15, 15, 128), (2, 700, 16, 2, 64), (4, 300, 6, 3, 200)],
)
def test_gpu_rows_of_every_shape(B: int, S: int, H: int, J: int, C: int, dtype: torch.dtype, codes: bool) -> None:
    if codes and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not know FP8")
    q, past = queries(B, H, C, dtype), cache(B, S, J, C, dtype, codes=codes)
    begins, ends = [S * b // (2 * B) for b in range(B)], [S - S * b // 4 for b in range(B)]
    bounds = {"begin_B": torch.tensor(begins, device=DEVICE), "end_B": torch.tensor(ends, device=DEVICE)}
    got = step(q, past, Backend.TRITON, **bounds)
    assert relative_error(got, by_definition(q, past, begins, ends)) < 5 * TOLERANCE[dtype]
    assert torch.equal(got, step(q, past, Backend.TRITON, **bounds))


@pytest.mark.gpu
def test_gpu_a_million_entries_reach_beyond_32_bits() -> None:
    S = 1 << 20
    past = {name: torch.randn(1, S, 32, 128, device=DEVICE, dtype=torch.bfloat16) for name in ("keys", "values")}
    q = queries(1, 32, 128, torch.bfloat16)
    bounds = {"begin_B": torch.tensor([S - 300], device=DEVICE), "end_B": torch.tensor([S], device=DEVICE)}
    tail = {name: tensor[:, S - 300 :] for name, tensor in past.items()}
    want = by_definition(q, tail, [0], [300])
    assert relative_error(step(q, past, Backend.TRITON, **bounds), want) < 5 * TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_rows_of_any_lengths() -> None:
    q, past = queries(2, 4, 64, torch.bfloat16), cache(2, 4000, 4, 64, torch.bfloat16, codes=False)
    begin_B, end_B = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.full((2,), 9, device=DEVICE)
    step(q, past, Backend.TRITON, begin_B=begin_B, end_B=end_B)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(q, past, Backend.TRITON, begin_B=begin_B, end_B=end_B)
    for begins, ends in (([0, 3], [1, 4000]), ([7, 3900], [3000, 3901])):
        begin_B.copy_(torch.tensor(begins))
        end_B.copy_(torch.tensor(ends))
        graph.replay()
        want = by_definition(q, past, begins, ends)
        assert relative_error(y, want) < 5 * TOLERANCE[torch.bfloat16]
