"""Time the forward of a preset's shape with random weights on this GPU; print one JSON line a length.

python tests/benchmarks/forward.py --preset evo2_7b_base --lengths 2048 8192 > tests/benchmarks/results/NAME.jsonl
"""

import argparse
import json
import statistics
import sys

import torch

from sh2.model import StripedHyena2
from sh2.presets import preset


def seconds(model: StripedHyena2, ids_BL: torch.Tensor, repeats: int) -> float:
    """The median time of one forward, by CUDA events, after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        model(ids_BL)
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times[1:])


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The L2 norm of the difference over that of the wanted value."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def random_ids(length: int) -> torch.Tensor:
    """One row of random bytes, always the same."""
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0)).cuda()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="evo2_7b_base")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", default="auto", help="of the hyena operators: auto, triton or reference")
    options = parser.parse_args()
    with torch.device("cuda"):
        model = StripedHyena2(preset(options.preset))
    model.use_backend(options.backend)
    unrounded = {length: model(random_ids(length))[0].cpu() for length in options.lengths}
    model.to(torch.bfloat16)
    rows, halves = [], {}
    for length in options.lengths:
        ids_BL = random_ids(length)
        torch.cuda.reset_peak_memory_stats()
        time = seconds(model, ids_BL, options.repeats)
        halves[length] = model(ids_BL)[0].float().cpu()
        rows.append(
            {
                "preset": options.preset,
                "length": length,
                "dtype": "bfloat16",
                "backend": options.backend,
                "forward_seconds": round(time, 5),
                "tokens_per_second": round(length / time),
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            }
        )
    model.float()
    for row in rows:
        full = model(random_ids(row["length"]))[0].cpu()
        half = halves[row["length"]]
        row["relative_error_to_float32"] = round(relative_error(half, full), 5)
        row["relative_error_of_rounding_the_weights"] = round(relative_error(full, unrounded[row["length"]]), 5)
        row["same_likeliest_token"] = round(float((half.argmax(-1) == full.argmax(-1)).double().mean()), 4)
        row |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "command": " ".join(sys.argv)}
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
