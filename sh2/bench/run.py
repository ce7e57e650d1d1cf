"""The table: every operator and peer at every size, each checked, then timed. Yields rows; prints nothing."""

import gc
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version

import torch

from sh2.bench.attempt import Refusal, attempt
from sh2.bench.cases import Case, Contender, Dtype, Operator, own
from sh2.bench.check import (
    check_ends,
    check_gradients,
    check_last_gradient,
    check_outputs,
    leaves,
    poisoned,
    random_gradient,
)
from sh2.bench.peers import PEERS, Peer, peer_versions
from sh2.bench.timing import Ceilings, Stopwatch, Timing, measure_ceilings

# relative L2 errors; peers round in more places than ours, and take float32 products as TF32
_OWN_TOLERANCE = {Dtype.BF16: 1e-2, Dtype.FP32: 1e-5}
_PEER_TOLERANCE = {Dtype.BF16: 5e-2, Dtype.FP32: 5e-3}
_FORWARD_TENSORS, _BACKWARD_TENSORS = 4, 7
_TOO_SLOW_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A time against the time of copying the floor's tensors, and against ours."""

    ms: float
    x_floor: float
    gb_per_s: float  # the floor's bytes over the time
    x_ours: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table. A figure that is missing has its reason in `note`."""

    case: Case
    name: str
    forward: Figure | None = None
    backward: Figure | None = None
    both: Figure | None = None
    peak_bytes: int | None = None
    error: float | None = None  # largest relative L2 error that the check found
    note: str = ""
    failed: bool = False  # our own operator, wrong or broken

    def values(self) -> dict[str, str | int | float | None]:
        """The row as plain values, a name a column."""
        figures = {"forward": self.forward, "backward": self.backward, "both": self.both}
        columns = [field.name for field in fields(Figure)]
        case = {name: value for name, value in asdict(self.case).items() if name not in ("op", "device")}
        return {
            "op": str(self.case.op),
            "name": self.name,
            **case,
            **{
                f"{kind}_{column}": figure and getattr(figure, column)
                for kind, figure in figures.items()
                for column in columns
            },
            "peak_gib": self.peak_bytes and self.peak_bytes / 2**30,
            "error": self.error,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class _Measured:
    forward: Timing | Refusal
    backward: Timing | Refusal | None = None
    error: float | None = None


_Parts = tuple[Timing | Refusal | None, ...]


class Bench:
    """Runs a table on one device: our operators first, then peers, so that no peer can spoil ours."""

    def __init__(self, *, device: str, backend: str, peers: Iterable[str], backward: bool = True) -> None:
        self._own = own(backend)
        self._peers = [peer for peer in PEERS if peer.name in set(peers)]
        self._backward = backward
        self._stopwatch = Stopwatch(device)
        self.ceilings: Ceilings = measure_ceilings(device, self._stopwatch)
        self._ours: dict[Case, _Measured] = {}
        self._known: dict[tuple[str, Case], _Measured] = {}

    def rows(self, cases: list[Case]) -> Iterator[Row]:
        """Yield the rows of our operators at all cases, then those of each peer.

        A peer that cannot run here has one row; one that took seconds at a length is not run at longer ones.
        """
        for case in cases:
            self._ours[case] = self._measure(case, self._own)
            yield self._row(case, self._own, self._ours[case])
        for peer in self._peers:
            yield from self._peer_rows(peer, [case for case in cases if case.op in peer.ops])

    def count(self, cases: list[Case]) -> int:
        """How many rows there will be."""
        wanted = [[case for case in cases if case.op in peer.ops] for peer in self._peers]
        missing = [bool(mine and peer.missing(mine[0])) for peer, mine in zip(self._peers, wanted, strict=True)]
        return len(cases) + sum(1 if gone else len(mine) for gone, mine in zip(missing, wanted, strict=True))

    def _peer_rows(self, peer: Peer, cases: list[Case]) -> Iterator[Row]:
        slow: dict[Case, int] = {}
        for case in cases:
            if missing := peer.missing(case):
                yield Row(case=case, name=peer.name, note=missing)
                return
            # what does not compute ours is the same for all of ours
            same = case if peer.ours else replace(case, op=Operator.HYENA_SE)
            size = replace(same, length=0)
            if case.length > slow.get(size, case.length):
                yield Row(case=case, name=peer.name, note=f"not run: took seconds at {slow[size]:,} tokens")
                continue
            known = peer.name, same
            if known not in self._known:
                self._known[known] = self._measure(case, peer)
            measured = self._known[known]
            if (_sum((measured.forward,)) or 0) + (_sum((measured.backward,)) or 0) > _TOO_SLOW_SECONDS:
                slow[size] = case.length
            yield self._row(case, peer, measured)

    def _measure(self, case: Case, contender: Contender) -> _Measured:
        """Check, then time. Whatever goes wrong is kept as the reason why there is no figure."""
        gc.collect()
        outputs = attempt(lambda: self._check_outputs(case, contender))
        if isinstance(outputs, Refusal):
            return _Measured(forward=outputs)
        gradients = attempt(lambda: self._check_gradients(case, contender)) if self._backward else None
        if contender is self._own and isinstance(gradients, Refusal) and not gradients.lack_of_memory:
            return _Measured(forward=gradients)
        forward = attempt(lambda: self._time_forward(case, contender))
        if not isinstance(gradients, float):
            return _Measured(forward=forward, backward=gradients, error=outputs)
        backward = attempt(lambda: self._time_backward(case, contender))
        return _Measured(forward=forward, backward=backward, error=max(outputs, gradients))

    def _check_outputs(self, case: Case, contender: Contender) -> float:
        size = contender.check_length
        if contender is not self._own:
            return check_outputs(contender.make(case.at(size)), _PEER_TOLERANCE[case.dtype])
        tolerance = _OWN_TOLERANCE[case.dtype]
        with poisoned():
            error = check_outputs(contender.make(case.at(size)), tolerance)
            return error if case.length <= size else max(error, check_ends(case, contender.make(case), size, tolerance))

    def _check_gradients(self, case: Case, contender: Contender) -> float:
        size = contender.check_length
        if contender is not self._own:
            return check_gradients(contender.make(case.at(size)), _PEER_TOLERANCE[case.dtype])
        tolerance = _OWN_TOLERANCE[case.dtype]
        with poisoned():
            error = check_gradients(contender.make(case.at(size)), tolerance)
            if case.length <= size:
                return error
            return max(error, check_last_gradient(case, contender.make(case), size, tolerance))

    def _time_forward(self, case: Case, contender: Contender) -> Timing:
        problem = contender.make(case)
        inputs = list(problem.inputs.values())
        with torch.no_grad():
            return self._stopwatch.time(lambda: lambda: problem.call(*inputs))

    def _time_backward(self, case: Case, contender: Contender) -> Timing:
        """Time the gradients of all inputs alone: each repetition builds its graph by a forward that is not counted."""
        problem = contender.make(case)
        inputs = leaves(problem)
        gradient = random_gradient(case, problem.call(*inputs)[0])

        def prepare() -> Callable[[], object]:
            y = problem.call(*inputs)[0]
            return lambda: torch.autograd.grad(y, inputs, gradient)

        return self._stopwatch.time(prepare)

    def _row(self, case: Case, contender: Contender, measured: _Measured) -> Row:
        ours = self._ours[case]
        forward, backward = measured.forward, measured.backward
        refused = {"": forward, "backward: ": backward}
        return Row(
            case=case,
            name=contender.name,
            forward=self._figure(case, _FORWARD_TENSORS, (forward,), (ours.forward,)),
            backward=self._figure(case, _BACKWARD_TENSORS, (backward,), (ours.backward,)),
            both=self._figure(
                case, _FORWARD_TENSORS + _BACKWARD_TENSORS, (forward, backward), (ours.forward, ours.backward)
            ),
            peak_bytes=max((part.peak_bytes for part in (forward, backward) if isinstance(part, Timing)), default=None),
            error=measured.error,
            note="; ".join(f"{what}{part.text}" for what, part in refused.items() if isinstance(part, Refusal)),
            failed=contender is self._own
            and any(isinstance(part, Refusal) and not part.lack_of_memory for part in refused.values()),
        )

    def _figure(self, case: Case, tensors: int, parts: _Parts, ours: _Parts) -> Figure | None:
        seconds, own_seconds = _sum(parts), _sum(ours)
        if seconds is None:
            return None
        floor_bytes = tensors * case.tensor_bytes
        return Figure(
            ms=seconds * 1e3,
            x_floor=seconds * self.ceilings.copy_bytes_per_second / floor_bytes,
            gb_per_s=floor_bytes / seconds / 1e9,
            x_ours=own_seconds and seconds / own_seconds,
        )


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on: hardware, driver, versions."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cpu": platform.machine()}
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda), "driver": _driver()}
        found |= {"cudnn": str(torch.backends.cudnn.version()), "triton": version("triton")}
    return found | peer_versions()


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0] or "unknown"


def _sum(parts: _Parts) -> float | None:
    """The seconds of all parts; None if one has no time."""
    seconds = [part.seconds for part in parts if isinstance(part, Timing)]
    return sum(seconds) if len(seconds) == len(parts) else None
