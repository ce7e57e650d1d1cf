"""Time what a block does beside its operator: RMSNorm (+ residual), the gate of the MLP, cross-entropy of 512 tokens.

Each as plain torch, as the same under torch.compile, and by torch's own fused function where there is one; forward, and
forward with backward, against the time of moving what must move at the copy speed measured here. What is not close to
plain torch in float64 has no figure. Prints one JSON line a row.

python tests/benchmarks/block.py --output tests/benchmarks/results/NAME.jsonl
"""

# B batch, L length, D width, I inner width of the MLP, V vocabulary

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from sh2.bench.cases import Outputs, Problem
from sh2.bench.check import CheckError, check_gradients, check_outputs, leaves
from sh2.bench.run import machine
from sh2.bench.timing import Stopwatch, Timing, measure_ceilings
from sh2.config import Activation
from sh2.layers import RMSNorm, activate
from sh2.train.loss import loss_sums

TOLERANCE = 1e-2
VOCABULARY, EPS = 512, 1e-6
Function = Callable[..., Outputs]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A function of tensors, and how many of its largest input must move, read and written together."""

    name: str
    inputs: dict[str, Tensor]
    plain: Function
    fused: Function | None = None
    forward_tensors: int
    backward_tensors: int


def rms_norm(width: int) -> Function:
    with torch.device("meta"):
        norm = RMSNorm(width, EPS)
    return lambda x_BLD, scale_D: (functional_call(norm, {"scale": scale_D}, x_BLD),)


def fused_rms_norm(x_BLD: Tensor, scale_D: Tensor) -> Outputs:
    # the eps stands under the root here; at these sizes of x that makes no difference
    return (F.rms_norm(x_BLD, scale_D.shape, scale_D, EPS),)


def add_to(norm: Function) -> Function:
    def add_and_norm(x_BLD: Tensor, y_BLD: Tensor, scale_D: Tensor) -> Outputs:
        sum_BLD = x_BLD + y_BLD
        return (sum_BLD, *norm(sum_BLD, scale_D))

    return add_and_norm


def gate(gate_BLI: Tensor, up_BLI: Tensor) -> Outputs:
    return (activate(gate_BLI, Activation.GELU) * up_BLI,)


def cross_entropy(targets_BL: Tensor, weights_BL: Tensor) -> Function:
    return lambda logits_BLV: (loss_sums(logits_BLV, targets_BL, weights_BL).weighted_nats,)


def fused_cross_entropy(targets_BL: Tensor, weights_BL: Tensor) -> Function:
    def weighted_nats(logits_BLV: Tensor) -> Outputs:
        nats_BL = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none")
        return ((nats_BL.float() * weights_BL.flatten()).sum(),)

    return weighted_nats


def operations(length: int, width: int, inner: int, device: str) -> list[Operation]:
    """What is timed, with bf16 inputs of random numbers."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    x, y, scale = normal(1, length, width), normal(1, length, width), 1 + normal(width) / 8
    targets_BL = torch.randint(VOCABULARY, (1, length), generator=generator, device=device)
    weights_BL = torch.rand((1, length), generator=generator, device=device)
    return [
        Operation(
            name="rms_norm",
            inputs={"x": x, "scale": scale},
            plain=rms_norm(width),
            fused=fused_rms_norm,
            forward_tensors=2,
            backward_tensors=3,
        ),
        Operation(
            name="add_rms_norm",
            inputs={"x": x, "y": y, "scale": scale},
            plain=add_to(rms_norm(width)),
            fused=add_to(fused_rms_norm),
            forward_tensors=4,
            backward_tensors=4,  # x and y have one gradient
        ),
        Operation(
            name="gelu_gate",
            inputs={"gate": normal(1, length, inner), "up": normal(1, length, inner)},
            plain=gate,
            forward_tensors=3,
            backward_tensors=5,
        ),
        Operation(
            name="cross_entropy",
            inputs={"logits": normal(1, length, VOCABULARY)},
            plain=cross_entropy(targets_BL, weights_BL),
            fused=fused_cross_entropy(targets_BL, weights_BL),
            forward_tensors=1,
            backward_tensors=2,
        ),
    ]


def measure(problem: Problem, stopwatch: Stopwatch) -> tuple[Timing, Timing]:
    """Time the forward as in training, with what it keeps for the backward, and both together."""
    inputs = leaves(problem)
    gradients = [torch.randn_like(output) for output in problem.call(*inputs)]

    def both() -> Outputs:
        return torch.autograd.grad(problem.call(*inputs), inputs, gradients)

    return stopwatch.time(lambda: lambda: problem.call(*inputs)), stopwatch.time(lambda: both)


def rows(operation: Operation, stopwatch: Stopwatch, copy_bytes_per_second: float) -> Iterator[dict[str, object]]:
    """Check and time every way to compute an operation."""
    size = next(iter(operation.inputs.values())).nbytes
    floor = operation.forward_tensors * size / copy_bytes_per_second
    floor_of_both = floor + operation.backward_tensors * size / copy_bytes_per_second
    compiled = torch.compile(operation.plain, fullgraph=True, dynamic=False)
    for way, function in {"eager": operation.plain, "compiled": compiled, "torch": operation.fused}.items():
        if function is None:
            continue
        problem = Problem(inputs=operation.inputs, call=function, definition=operation.plain)
        row: dict[str, object] = {"op": operation.name, "way": way}
        began = perf_counter()
        try:
            error = max(check_gradients(problem, TOLERANCE), check_outputs(problem, TOLERANCE))
        except CheckError as wrong:
            yield row | {"note": f"not timed: {wrong}"}
            continue
        checked = perf_counter() - began
        forward, both = measure(problem, stopwatch)
        yield row | {
            "forward_ms": round(forward.seconds * 1e3, 4),
            "forward_x_floor": round(forward.seconds / floor, 3),
            "both_ms": round(both.seconds * 1e3, 4),
            "both_x_floor": round(both.seconds / floor_of_both, 3),
            "peak_gib": round(both.peak_bytes / 2**30, 3),
            "error": float(f"{error:.3g}"),
            "seconds_to_compile_and_check": round(checked, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11_264, help="width of the MLP's gate; that of the 7B model")
    parser.add_argument("--output", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    stopwatch = Stopwatch(options.device)
    ceilings = measure_ceilings(options.device, stopwatch)
    common = {"length": options.length, "width": options.width, "inner": options.inner, "dtype": "bfloat16"}
    common |= {"ceilings": asdict(ceilings), "machine": machine(options.device), "command": " ".join(sys.argv)}
    lines = []
    for operation in operations(options.length, options.width, options.inner, options.device):
        for row in rows(operation, stopwatch, ceilings.copy_bytes_per_second):
            lines.append(json.dumps(row | common) + "\n")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    if options.output:
        options.output.write_text("".join(lines))


if __name__ == "__main__":
    main()
