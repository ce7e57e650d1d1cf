"""Train the paper's layouts at the same parameters for the same seconds, some seeds each; print a line of JSON a run.

python tests/benchmarks/layouts.py far.h5 --test ecoli.fna.gz --preset nano --seconds 60 --output runs/

Seeds of a layout run side by side on one GPU, all layouts alike. How many steps fit is measured first, in the same
company and after compiling; so every schedule ends in time. Runs are those of `evo train`; held-out bases are those of
`evo eval perplexity`, forward strand. What is there already is not run again.
"""

import argparse
import csv
import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

LAYOUTS = "se-mr-li,se-se-li,li-li-li,all-se,all-mr,attention"
TRIAL_STEPS = 60


def evo(*arguments: str) -> subprocess.Popen[str]:
    """Start a command; what it says goes to nobody."""
    command = [sys.executable, "-m", "evo_cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*started: subprocess.Popen[str]) -> list[str]:
    """What commands printed.

    Raises:
        RuntimeError: one failed; its last line says why.
    """
    printed = []
    for process in started:
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{shlex.join(map(str, process.args))}: {err.strip().splitlines()[-1]}")  # type: ignore[arg-type]
        printed.append(out)
    return printed


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(chosen: argparse.Namespace, layout: str, seeds: range, steps: int, prefix: str) -> list[Path]:
    """Run all seeds of a layout side by side."""
    folders = [chosen.output / f"{prefix}{layout}_{seed}" for seed in seeds]
    common = shlex.split(chosen.train)
    started = [
        evo(
            "train", str(chosen.store), "--preset", chosen.preset, "--ablation", layout, "--seed", str(seed),
            "--steps", str(steps), "--save-every", "0", "--valid-every", str(max(1, steps // 10)), *common,
            "-o", str(folder),
        )
        for seed, folder in zip(seeds, folders, strict=True)
        if not (folder / "model").exists()
    ]  # fmt: skip
    finished(*started)
    return folders


def measure(chosen: argparse.Namespace, layout: str) -> list[dict[str, object]]:
    """Train one layout and measure every seed."""
    seeds = range(chosen.seeds)
    trials = train(chosen, layout, seeds, TRIAL_STEPS, "trial_")
    # the first half compiles
    a_step = max(max(row["step_seconds"] for row in lines(trial / "speed.jsonl")[-2:]) for trial in trials)
    steps = max(TRIAL_STEPS, int(chosen.seconds / a_step))
    start = time.perf_counter()
    folders = train(chosen, layout, seeds, steps, "")
    seconds = time.perf_counter() - start
    tested = finished(
        *(
            evo("eval", "perplexity", str(chosen.test), "--model", str(folder / "model"), *shlex.split(chosen.eval))
            for folder in folders
        )
    )
    rows: list[dict[str, object]] = []
    for seed, folder, table in zip(seeds, folders, tested, strict=True):
        metrics, speed = lines(folder / "metrics.jsonl"), lines(folder / "speed.jsonl")
        (measured,) = csv.DictReader(io.StringIO(table), delimiter="\t")
        rows.append(
            {
                "layout": layout,
                "seed": seed,
                "preset": chosen.preset,
                "steps": steps,
                "tokens": metrics[-1]["tokens"],
                "tokens_per_second": round(speed[-1]["tokens_per_second"]),
                "valid_bits_per_base": metrics[-1]["valid_bits_per_base"],
                "test_bits_per_base": float(measured["bits_per_base"]),
                "curve": [(m["tokens"], m["valid_bits_per_base"]) for m in metrics if "valid_bits_per_base" in m],
                "seconds_asked": chosen.seconds,
                "seconds_of_all_seeds": round(seconds, 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="of `evo prepare`, to train on")
    parser.add_argument("--test", type=Path, required=True, help="FASTA to measure on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--layouts", default=LAYOUTS, help="names of `evo models --ablations`")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each run")
    parser.add_argument("--train", default="--length 8192 --batch-size 8 --lr 2e-3", help="further options of training")
    parser.add_argument("--eval", default="--context 8192", help="further options of `evo eval perplexity`")
    chosen = parser.parse_args()
    about = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "command": shlex.join(["python", "tests/benchmarks/layouts.py", *sys.argv[1:]]),
    }
    for layout in chosen.layouts.split(","):
        for row in measure(chosen, layout):
            sys.stdout.write(json.dumps(row | about) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
