"""Time mixers over several processes that share a sequence, by every method, against one process with all of it.

Forward with backward of one mixer, projections included, from the sequence's start. `scaling` is the time of one
process over that of all: their number at best. Prints one JSON line a row.

torchrun --nproc-per-node 2 tests/benchmarks/context.py --preset evo2_7b --lengths 131072,524288 --output FILE.jsonl
"""

# B batch, L length, D width

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
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

REPEATS = 7  # the same on every rank: a repetition more on one would wait for ever
KINDS = {"S": "hyena_se", "M": "hyena_mr", "L": "hyena_li", "*": "attention"}


def measure(call: Callable[[], None], device: torch.device) -> float:
    """The median seconds of a call that all processes begin together."""
    seconds = []
    for _ in range(REPEATS + 2):
        dist.barrier()
        began = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return statistics.median(seconds[2:])


def step(mixer: nn.Module, x_BLD: Tensor) -> Callable[[], None]:
    """Forward and backward of one mixer."""
    dy_BLD = torch.randn_like(x_BLD)

    def run() -> None:
        x_BLD.grad = None
        mixer.zero_grad(set_to_none=True)
        y_BLD, _ = mixer(x_BLD)
        y_BLD.backward(dy_BLD)

    return run


def rows(letter: str, length: int, options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    """Time one kind of mixer on one length: in one process, and in all by every method."""
    config = replace(preset(options.preset), layout=letter)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def fresh() -> StripedHyena2:
        with device:
            return StripedHyena2(config).to(dtype)

    x_BLD = torch.randn(1, length, config.width, device=device, dtype=dtype)
    # every rank by itself, for all to begin alike
    alone = measure(step(fresh().blocks[0].mixer, x_BLD.clone().requires_grad_()), device)
    methods = AttentionMethod if letter == "*" else ConvolutionMethod
    for method in methods:
        for sharding in Sharding:
            row = {"mixer": KINDS[letter], "length": length, "method": str(method), "sharding": str(sharding)}
            model = fresh()
            chosen = {"attention": method} if letter == "*" else {"convolution": method}
            try:
                context = parallelise(model, sharding=sharding, **chosen)
                shard_BLD = context.shard(x_BLD).requires_grad_()
                together = measure(step(model.blocks[0].mixer, shard_BLD), device)
            except (Sh2Error, torch.OutOfMemoryError) as error:
                yield row | {"note": f"not timed: {error}"}
                continue
            yield row | {
                "one_ms": round(alone * 1e3, 3),
                "all_ms": round(together * 1e3, 3),
                "scaling": round(alone / together, 3),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="evo2_7b")
    parser.add_argument("--layout", default="SML*", help="one letter a mixer to time")
    parser.add_argument("--lengths", default="131072")
    parser.add_argument("--output", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    device = torch.device(options.device, dist.get_rank()) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    common = {"preset": options.preset, "ranks": dist.get_world_size(), "machine": machine(str(device))}
    common |= {"command": " ".join(sys.argv)}
    lines = []
    for letter in options.layout:
        for length in map(int, options.lengths.split(",")):
            for row in rows(letter, length, options, device):
                lines.append(json.dumps(row | common) + "\n")
                if dist.get_rank() == 0:
                    sys.stdout.write(json.dumps(row) + "\n")
                    sys.stdout.flush()
    if options.output and dist.get_rank() == 0:
        options.output.write_text("".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
