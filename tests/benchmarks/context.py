"""Time mixers over several processes that share a sequence, by every method, against one process with all of it.

A part `operator` is the convolution between the projections, `mixer` has the projections too. Forward and backward from
the sequence's start on random numbers; a time is the median over repetitions of the slowest process. `scaling` is the
time of one process over that of all: their number at best. Rows of `stack` sum up the preset's convolutional layers.
Prints one JSON line a row.

torchrun --nproc-per-node 2 tests/benchmarks/context.py --lengths 131072,524288 --methods state,a2a,ring --output FILE
torchrun --nproc-per-node 2 tests/benchmarks/context.py --device cpu --preset nano --lengths 2048 --layout SML
"""

# B batch, L length, W width of the input: D or, where there are no projections, 3 D

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sh2.bench.run import machine
from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.parallel import AttentionMethod, ConvolutionMethod, Sharding, parallelise
from sh2.presets import preset

REPEATS = 9  # the same on every rank: a repetition more on one would wait for ever
WARM_UP = 3
AHEAD = 20_000_000  # cycles for which a GPU is kept waiting while the host fills its queue, as it does in a model
KINDS = {"S": "hyena_se", "M": "hyena_mr", "L": "hyena_li", "*": "attention"}
CONVOLUTIONS = "SML"


class Clock:
    """Notes times, by events on a GPU's queue."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.notes: list[float | torch.cuda.Event] = []

    def note(self) -> None:
        if self.device.type == "cuda":
            self.notes.append(torch.cuda.Event(enable_timing=True))
            self.notes[-1].record()  # type: ignore[union-attr]
        else:
            self.notes.append(perf_counter())

    def milliseconds(self) -> list[float]:
        """What has passed between the notes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return [one.elapsed_time(other) for one, other in zip(self.notes, self.notes[1:], strict=False)]  # type: ignore[union-attr, arg-type]
        return [(other - one) * 1e3 for one, other in zip(self.notes, self.notes[1:], strict=False)]  # type: ignore[operator]


def measure(mixer: nn.Module, x_BLW: Tensor) -> dict[str, float]:
    """The median milliseconds of forward and of backward, and the GiB that they take at most."""
    with torch.no_grad():
        dy_BLD = torch.randn_like(mixer(x_BLW)[0])
    if x_BLW.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    passes = []
    for _ in range(WARM_UP + REPEATS):
        x_BLW.grad = None
        mixer.zero_grad(set_to_none=True)
        clock = Clock(x_BLW.device)
        dist.barrier()
        if x_BLW.is_cuda:
            torch.cuda._sleep(AHEAD)
        clock.note()
        y_BLD, _ = mixer(x_BLW)
        clock.note()
        y_BLD.backward(dy_BLD)
        clock.note()
        passes.append(clock.milliseconds())
    times = torch.tensor(passes[WARM_UP:], device=x_BLW.device)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    forward, backward = times.median(dim=0).values.tolist()
    peak = torch.cuda.max_memory_allocated() if x_BLW.is_cuda else 0
    return {"forward_ms": forward, "backward_ms": backward, "peak_gib": peak / 2**30}


def rows(letter: str, part: str, length: int, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Time one kind of mixer on one length: in one process, and in all by every method."""
    config = replace(preset(options.preset), layout=letter)
    device, dtype = options.where, torch.bfloat16 if options.where.type == "cuda" else torch.float32

    def fresh() -> StripedHyena2:
        with device:
            model = StripedHyena2(config).to(dtype)
        if part == "operator":
            model.blocks[0].mixer.input = model.blocks[0].mixer.output = nn.Identity()
        return model

    width = config.width * (3 if part == "operator" else 1)
    x_BLW = torch.randn(1, length, width, device=device, dtype=dtype)
    # every rank by itself, for all to begin alike
    alone = measure(fresh().blocks[0].mixer, x_BLW.clone().requires_grad_())
    for method in AttentionMethod if letter == "*" else ConvolutionMethod:
        for sharding in Sharding:
            if options.methods and method not in options.methods.split(","):
                continue
            row = {"part": part, "mixer": KINDS[letter], "length": length, "method": str(method)}
            row |= {"sharding": str(sharding)}
            model = fresh()
            chosen = {"attention": method} if letter == "*" else {"convolution": method}
            try:
                context = parallelise(model, sharding=sharding, **chosen)
                together = measure(model.blocks[0].mixer, context.shard(x_BLW).requires_grad_())
            except (Sh2Error, torch.OutOfMemoryError) as error:
                yield row | {"note": f"not timed: {error}"}
                continue
            yield row | compared(alone, together)


def compared(alone: dict[str, float], together: dict[str, float]) -> dict[str, float]:
    """The times of one process, of all, and how much faster these are."""
    found = {f"one_{name}": round(value, 4) for name, value in alone.items()}
    found |= {f"all_{name}": round(value, 4) for name, value in together.items()}
    found["scaling"] = round(sum(milliseconds(alone)) / sum(milliseconds(together)), 4)
    return found


def milliseconds(times: dict[str, float]) -> tuple[float, float]:
    return times["forward_ms"], times["backward_ms"]


def stacks(found: list[dict[str, object]], layout: str) -> Iterator[dict[str, object]]:
    """Sum up what the convolutional layers of a whole model take, where all kinds of them have been timed."""
    counts = Counter(KINDS[letter] for letter in layout if letter in CONVOLUTIONS)
    names = ("part", "length", "method", "sharding")
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in found):
        timed = {row["mixer"]: row for row in found if tuple(row[name] for name in names) == key and "scaling" in row}
        if not counts.keys() <= timed.keys():
            continue
        one, both = (
            {
                f"{way}_ms": sum(count * float(str(timed[kind][f"{who}_{way}_ms"])) for kind, count in counts.items())
                for way in ("forward", "backward")
            }
            for who in ("one", "all")
        )
        what = {"part": key[0], "mixer": "stack", "layers": dict(counts), "length": key[1]}
        yield what | {"method": key[2], "sharding": key[3]} | compared(one, both)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--preset", default="evo2_7b")
    parser.add_argument("--layout", default="SML*", help="one letter a mixer to time")
    parser.add_argument("--lengths", default="131072")
    parser.add_argument("--parts", default="operator,mixer")
    parser.add_argument("--methods", help="time these only, such as state,a2a")
    parser.add_argument("--output", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    options.where = torch.device("cpu")
    if options.device == "cuda":
        options.where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(options.where)
        dist.init_process_group("nccl", device_id=options.where)
    else:
        dist.init_process_group("gloo")
    common = {"preset": options.preset, "ranks": dist.get_world_size(), "machine": machine(str(options.where))}
    common |= {"command": " ".join(sys.argv)}
    file = options.output.open("w") if options.output and dist.get_rank() == 0 else None

    def tell(row: dict[str, object]) -> None:
        for place, what in ((sys.stdout, row), (file, row | common)):
            if place is not None and dist.get_rank() == 0:
                place.write(json.dumps(what) + "\n")
                place.flush()

    found = []
    for length in map(int, options.lengths.split(",")):
        for part in options.parts.split(","):
            for letter in options.layout.replace("*", "") if part == "operator" else options.layout:
                for row in rows(letter, part, length, options):
                    found.append(row)
                    tell(row)
    for row in stacks(found, preset(options.preset).layout):
        tell(row)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
