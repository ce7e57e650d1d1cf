"""Time a model from the disk to its first score, against reading the same bytes and doing nothing with them.

python tests/benchmarks/loading.py --preset evo2_7b_base --device cuda --model /tmp/model
python tests/benchmarks/loading.py --preset evo2_7b_base --device cuda --model /tmp/published/model.pt

Random weights in bf16 are saved first, in our format or in the published one, unless they are there. Files are read
by one thread, large buffers at a time, which also leaves them in the page cache; then a process loads the model, and
scores a sequence. Prints one JSON line.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

import sh2
from sh2.bench.models import random_model
from sh2.bench.run import machine
from sh2.checkpoint.conversion import Target, convert
from sh2.config import ModelConfig
from sh2.presets import preset

BUFFER = 64 << 20
REPEATS = 2
LOAD = """
import sys
from time import perf_counter
import torch, sh2
path, device = sys.argv[1:]
torch.zeros(1, device=device)
times = [perf_counter()]
sh2.load, sh2.score  # which imports what they need
times.append(perf_counter())
model = sh2.load(path, device, torch.bfloat16)
if device != "cpu":
    torch.cuda.synchronize()
times.append(perf_counter())
sh2.score(model, ["ACGT" * 250])
times.append(perf_counter())
print(*(end - begin for begin, end in zip(times, times[1:])))
"""


def save(config: ModelConfig, device: str, path: Path) -> None:
    """Save random weights, in the published format if the path is that of a file."""
    folder = path.with_suffix("") if path.suffix else path
    sh2.save_model(random_model(config, device=device, dtype=torch.bfloat16), folder)
    torch.cuda.empty_cache()
    if path.suffix:
        convert(folder, path, target=Target.PUBLISHED)
        shutil.rmtree(folder)


def read(files: list[Path]) -> float:
    """Seconds to read files."""
    buffer = bytearray(BUFFER)
    began = perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):  # type: ignore[attr-defined]
                pass
    return perf_counter() - began


def load(model: Path, device: str) -> list[float]:
    """Seconds to import, to load, and then to score, in a new process."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(model), device], check=True, capture_output=True, text=True)
    return [float(text) for text in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="evo2_7b_base")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path, required=True, help="folder or published file, saved there if it is not")
    chosen = parser.parse_args()
    if not chosen.model.exists():
        save(preset(chosen.preset), chosen.device, chosen.model)
    files = sorted(chosen.model.glob("*.safetensors")) if chosen.model.is_dir() else [chosen.model]
    size = sum(path.stat().st_size for path in files)
    read(files)  # into the page cache
    reading = median(read(files) for _ in range(REPEATS))
    load(chosen.model, chosen.device)  # what is compiled once is compiled now
    loads = [load(chosen.model, chosen.device) for _ in range(REPEATS)]
    importing, loading, scoring = (median(times) for times in zip(*loads, strict=True))
    row = {
        "preset": chosen.preset,
        "gb": size / 1e9,
        "read_gb_per_s": size / reading / 1e9,
        "load_gb_per_s": size / loading / 1e9,
        "load_to_read": reading / loading,
        "import_seconds": importing,
        "load_seconds": loading,
        "first_score_seconds": scoring,
        "machine": machine(chosen.device),
        "command": shlex.join(["python", "tests/benchmarks/loading.py", *sys.argv[1:]]),
    }
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
