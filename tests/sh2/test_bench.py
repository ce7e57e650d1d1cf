"""The benchmark's table: no figure without a check, and what each line says where there is none."""

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kernels
from sh2.bench import mixers, run, timing
from sh2.bench.cases import Case, Dtype, Operator
from sh2.bench.check import poisoned
from sh2.bench.imports import import_alone
from sh2.bench.peers import PEERS, Peer
from sh2.bench.run import Bench, Row
from sh2.bench.timing import Ceilings, Stopwatch, measure_ceilings

LONG = 2100  # over the length of the check


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Ceilings(copy_bytes_per_second=1e10, matmul_flops_per_second=1e12)
    monkeypatch.setattr(run, "measure_ceilings", lambda device, stopwatch: limits)
    monkeypatch.setattr(timing, "_CPU_BUDGET_SECONDS", 0.0)


def case(op: Operator = Operator.HYENA_SE, length: int = 40, dtype: Dtype = Dtype.FP32) -> Case:
    return Case(op=op, batch=2, length=length, width=16, channels_per_group=8, dtype=dtype, device="cpu")


def rows(*cases: Case, peers: tuple[str, ...] = (), backward: bool = True) -> list[Row]:
    return list(Bench(device="cpu", backend="auto", peers=peers, backward=backward).rows(list(cases)))


def peer(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_the_figures_of_our_operators(dtype: Dtype) -> None:
    table = rows(*(case(op, dtype=dtype) for op in Operator))
    assert [row.case.op for row in table] == list(Operator)
    tensor = 2 * 40 * 16 * (2 if dtype is Dtype.BF16 else 4)
    for row in table:
        assert row.name == "evo"
        assert not row.failed
        assert not row.note
        assert row.error is not None
        assert row.error < (1e-2 if dtype is Dtype.BF16 else 1e-5)
        assert row.forward
        assert row.backward
        assert row.both
        for figure, tensors in ((row.forward, 4), (row.backward, 7), (row.both, 11)):
            assert figure.gb_per_s == pytest.approx(tensors * tensor / figure.ms / 1e6)
            assert figure.x_floor == pytest.approx(1e10 / 1e9 / figure.gb_per_s)
            assert figure.x_ours == 1
        assert row.both.ms == pytest.approx(row.forward.ms + row.backward.ms)


def test_forward_only() -> None:
    (row,) = rows(case(), backward=False)
    assert row.forward
    assert row.backward is row.both is None
    assert not row.note


Spoil = Callable[[Tensor, kernels.FirState], tuple[Tensor, kernels.FirState]]


def last_is_off(y: Tensor, state: kernels.FirState) -> tuple[Tensor, kernels.FirState]:
    """Wrong only beyond the length that the check cuts to."""
    return (y if y.shape[1] < LONG else torch.cat([y[:, :-1], 1.5 * y[:, -1:]], dim=1)), state


class _LastGradientIsOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return last_is_off(grads[0], kernels.FirState(grads[0], grads[0]))[0]


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda y, state: (1.01 * y, state), "y is off by 1.0e-02 relative to float64, over the 1e-05 allowed"),
        (lambda y, state: (y, state._replace(inner_BPD=2 * state.inner_BPD)), "the filter's state is off by 1.0e+00"),
        (lambda y, state: (y.detach(), state), "RuntimeError: "),
        (lambda y, state: (y, kernels.FirState(*(part.detach() for part in state))), "RuntimeError: "),
        (lambda y, state: (2 * y - y.detach(), state), "the gradient of z is off by"),
        (lambda y, state: (y[:, 1:], state), "y has the shape (2, 2050, 16), not (2, 2051, 16)"),
        (lambda y, state: (torch.empty_like(y), state), "y is off by nan"),
        (last_is_off, "y at the end is off by"),
        (lambda y, state: (_LastGradientIsOff.apply(y), state), "the gradient of z at the end is off by"),
    ],
)
def test_an_operator_that_is_wrong_has_no_figure(monkeypatch: pytest.MonkeyPatch, spoil: Spoil, note: str) -> None:
    right = kernels.hyena_fir

    def wrong(*args: object, backend: kernels.Backend) -> tuple[Tensor, kernels.FirState]:
        result = right(*args, backend=backend)  # type: ignore[arg-type]
        return result if backend is kernels.Backend.REFERENCE else spoil(*result)

    monkeypatch.setattr(kernels, "hyena_fir", wrong)
    wrong_row, right_row = rows(case(length=LONG), case(Operator.HYENA_LI))
    assert wrong_row.failed
    assert wrong_row.forward is wrong_row.backward is wrong_row.both is wrong_row.error is None
    assert wrong_row.note.startswith(note)
    assert right_row.forward
    assert not right_row.failed


def test_an_operator_that_raises_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*args: object, **options: object) -> None:
        raise ValueError("hyena_li: the Triton kernels cannot run here:\nthe tensors are on the CPU")

    monkeypatch.setattr(kernels, "hyena_li", refusing)
    raised, right = rows(case(Operator.HYENA_LI), case())
    assert (raised.failed, raised.forward) == (True, None)
    assert raised.note == "ValueError: hyena_li: the Triton kernels cannot run here: the tensors are on the CPU"
    assert right.forward


def test_lack_of_memory_is_a_note_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB")

    monkeypatch.setattr(kernels, "hyena_li", large)
    short, right = rows(case(Operator.HYENA_LI), case())
    assert (short.note, short.forward, short.failed) == ("out of memory", None, False)
    assert right.forward


def test_peers_that_run_on_a_cpu() -> None:
    names = "conv1d", "conv1d_transposed", "fft", "sdpa_flash", "sdpa_math"
    cases = [replace(case(op, length=150), width=128) for op in Operator]
    table = [row for row in rows(*cases, peers=names) if row.name != "evo"]
    assert len(table) == 2 + 2 + 1 + 3 + 3
    for row in table:
        assert row.forward, row.note
        assert row.backward, row.note
        assert row.forward.x_ours
        assert row.error is not None
        assert row.error < 1e-5
    # attention is measured once, and set against each of ours
    flash = [row.forward for row in table if row.name == "sdpa_flash"]
    assert len({figure.ms for figure in flash if figure}) == 1
    assert len({figure.x_ours for figure in flash if figure}) == 3


def test_a_peer_that_cannot_run_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(peer("cudnn_b2b"), module="no_such_module")
    monkeypatch.setattr(run, "PEERS", [absent, peer("sdpa_cudnn")])
    table = rows(case(), case(length=50), peers=("cudnn_b2b", "sdpa_cudnn"))[2:]
    assert [(row.name, row.note, row.forward, row.failed) for row in table] == [
        (
            "cudnn_b2b",
            "not installed: pip install 'nvidia-cudnn-frontend>=1.32' 'nvidia-cudnn-cu13>=9.24'",
            None,
            False,
        ),
        ("sdpa_cudnn", "needs a CUDA GPU", None, False),
    ]


def test_a_peer_that_breaks_spoils_only_its_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            raise RuntimeError("wrong results\n  on this GPU")

    def no_backward(case: Case) -> object:
        problem = peer("conv1d").make(case)
        return replace(problem, call=lambda *inputs: (Refusing.apply(*problem.call(*inputs)),))

    def wrong(case: Case) -> object:
        return replace(peer("conv1d").make(case), call=lambda *inputs: (inputs[0][:, :16],))

    def narrow(case: Case) -> object:
        return peer("sdpa_math").make(case)

    conv = peer("conv1d")
    made = [replace(conv, name=make.__name__, make=make) for make in (no_backward, wrong, narrow)]
    monkeypatch.setattr(run, "PEERS", made)
    halved, refused, raised = rows(case(), peers=("no_backward", "wrong", "narrow"))[1:]
    assert halved.forward
    assert halved.backward is None
    assert halved.note == "backward: RuntimeError: wrong results on this GPU"
    assert refused.forward is refused.backward is None
    assert refused.note.startswith("y is off by")
    assert raised.note == "Sh2Error: a width of 16 is no whole number of heads of 128"
    assert not any(row.failed for row in (halved, refused, raised))


def test_a_slow_peer_is_not_run_at_longer_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_TOO_SLOW_SECONDS", 0.0)
    table = rows(case(), case(length=50), peers=("conv1d",))[2:]
    assert table[0].forward
    assert (table[1].forward, table[1].note) == (None, "not run: took seconds at 40 tokens")


@pytest.mark.parametrize(("beta", "decays"), list(itertools.product([False, True], [0, 3, 4])))
def test_the_definition_of_linear_attention(beta: bool, decays: int) -> None:
    """Against the explicit sum over earlier tokens; with a beta, against what the delta rule promises."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 3, 4, dtype=torch.float64) for _ in range(3))
    log_decay = -torch.rand(2, 9, 3, 4, dtype=torch.float64)[(..., 0) if decays == 3 else ...] if decays else None
    if beta:
        k = torch.nn.functional.normalize(k, dim=-1)
        (y,) = mixers._recurrence(k, k, v, log_decay=log_decay, beta=torch.ones(2, 9, 3, dtype=torch.float64))
        torch.testing.assert_close(y, v)  # what was just written under a key is what reading it returns
        return
    want = torch.zeros_like(v)
    for t in range(9):
        for s in range(t + 1):
            kept = torch.ones(()) if log_decay is None else log_decay[:, s + 1 : t + 1].sum(1).exp()
            weight = (q[:, t] * k[:, s] * (kept[..., None] if kept.ndim == 2 else kept)).sum(-1)
            want[:, t] += 0.5 * weight[..., None] * v[:, s]
    (y,) = mixers._recurrence(q, k, v, log_decay=log_decay, scale=0.5)
    torch.testing.assert_close(y, want)


def test_the_clock_counts_only_the_call() -> None:
    def prepare() -> Callable[[], None]:
        time.sleep(0.03)
        return lambda: time.sleep(0.005)

    assert 0.005 <= Stopwatch("cpu").time(prepare).seconds < 0.025


def test_ceilings_are_measured() -> None:
    limits = measure_ceilings("cpu", Stopwatch("cpu"))
    assert 1e8 < limits.copy_bytes_per_second < 1e13
    assert 1e8 < limits.matmul_flops_per_second < 1e16


def test_poison_is_taken_away_again() -> None:
    with poisoned():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_module_is_imported_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer" / "ops").mkdir(parents=True)
    (tmp_path / "broken_peer" / "__init__.py").write_text("import an_extension_that_is_not_built\n")
    (tmp_path / "broken_peer" / "ops" / "plain.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert import_alone("broken_peer.ops.plain").VALUE == 7
        assert importlib.util.find_spec("broken_peer")  # as `Peer.missing` asks
        with pytest.raises(ImportError, match=r"broken_peer\.ops\.absent"):
            import_alone("broken_peer.ops.absent")
    finally:
        for name in [name for name in sys.modules if name.startswith("broken_peer")]:
            del sys.modules[name]
