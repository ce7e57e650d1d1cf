"""Train the paper's layouts at the same parameters for the same seconds, some seeds each; print a line of JSON a run.

python tests/benchmarks/layouts.py far.h5 --test ecoli.fna.gz --preset nano --seconds 60 --output runs/ --plot all.png

How many steps a layout makes in that time is measured first, alone on the machine; then all runs are made, several at
once, in whatever company: each has the steps of its layout. Runs are those of `evo train`; held-out bases are those of
`evo eval perplexity`, forward strand. What is there already is not run again, nor what `--done` has, a table of before
whose steps are taken too; its rows are printed and drawn with the others.
"""

import argparse
import csv
import io
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from evo_cli.outputs.picture import blank, entitle, save

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


def train(chosen: argparse.Namespace, layout: str, seed: int, steps: int, folder: Path) -> None:
    if (folder / "model").exists() and lines(folder / "metrics.jsonl")[-1]["step"] == steps:
        return
    finished(
        evo(
            "train", str(chosen.store), "--preset", chosen.preset, "--ablation", layout, "--seed", str(seed),
            "--steps", str(steps), "--save-every", "0", "--valid-every", str(max(1, steps // 10)),
            *shlex.split(chosen.train), *(["--resume"] if folder.exists() else []), "-o", str(folder),
        )
    )  # fmt: skip


def steps_of(chosen: argparse.Namespace, layout: str) -> int:
    """How many steps a layout makes in the seconds, alone."""
    trial = chosen.output / f"trial_{layout}"
    train(chosen, layout, 0, TRIAL_STEPS, trial)
    # the first half compiles
    a_step = max(row["step_seconds"] for row in lines(trial / "speed.jsonl")[-2:])
    return max(TRIAL_STEPS, int(chosen.seconds / a_step))


def measure(chosen: argparse.Namespace, layout: str, seed: int, steps: int) -> dict[str, object]:
    """Train, and measure on what was held out."""
    folder = chosen.output / f"{layout}_{seed}"
    train(chosen, layout, seed, steps, folder)
    arguments = "--model", str(folder / "model"), *shlex.split(chosen.eval)
    (table,) = finished(evo("eval", "perplexity", str(chosen.test), *arguments))
    metrics, (measured,) = lines(folder / "metrics.jsonl"), csv.DictReader(io.StringIO(table), delimiter="\t")
    return {
        "layout": layout,
        "seed": seed,
        "preset": chosen.preset,
        "steps": steps,
        "tokens": metrics[-1]["tokens"],
        "valid_bits_per_base": metrics[-1]["valid_bits_per_base"],
        "test_bits_per_base": float(measured["bits_per_base"]),
        "curve": [(row["tokens"], row["valid_bits_per_base"]) for row in metrics if "valid_bits_per_base" in row],
        "seconds_alone": chosen.seconds,
    }


def plot(rows: list[dict[str, Any]], picture: Path, *, title: str) -> None:
    """Draw what is held out of the training data over the seconds: the mean of the seeds, and their range."""
    figure = blank(7, 4)
    axes = figure.subplots()
    for layout in dict.fromkeys(row["layout"] for row in rows):
        runs = [row for row in rows if row["layout"] == layout]
        seconds = [tokens / runs[0]["tokens"] * runs[0]["seconds_alone"] for tokens, _ in runs[0]["curve"]]
        bits = list(zip(*([value for _, value in run["curve"]] for run in runs), strict=True))
        (line,) = axes.plot(seconds, [sum(values) / len(values) for values in bits], label=layout)
        axes.fill_between(seconds, list(map(min, bits)), list(map(max, bits)), color=line.get_color(), alpha=0.2, lw=0)
    axes.set_xlabel("seconds of training, alone on the machine")
    axes.set_ylabel("bits per base, held out")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    entitle(figure, title)
    save(figure, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="of `evo prepare`, to train on")
    parser.add_argument("--test", type=Path, required=True, help="FASTA to measure on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--layouts", default=LAYOUTS, help="names of `evo models --ablations`")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, alone, for each run")
    parser.add_argument("--at-once", type=int, default=4, help="runs side by side")
    parser.add_argument("--train", default="--length 8192 --batch-size 8 --lr 2e-3", help="further options of training")
    parser.add_argument("--plot", type=Path, help="PNG to draw the curves to")
    parser.add_argument("--done", type=Path, help="lines of an earlier call, to go on with")
    parser.add_argument("--eval", default="--context 8192", help="further options of `evo eval perplexity`")
    chosen = parser.parse_args()
    about = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "command": shlex.join(["python", "tests/benchmarks/layouts.py", *sys.argv[1:]]),
    }
    layouts = chosen.layouts.split(",")
    rows = lines(chosen.done) if chosen.done else []
    sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    known = {row["layout"]: row["steps"] for row in rows}
    steps = {layout: known.get(layout) or steps_of(chosen, layout) for layout in layouts}
    done = {(row["layout"], row["seed"]) for row in rows}
    with ThreadPoolExecutor(chosen.at_once) as pool:
        # seeds outermost: a table that is cut short has every layout
        runs = [(layout, seed) for seed in range(chosen.seeds) for layout in layouts if (layout, seed) not in done]
        for row in pool.map(lambda run: measure(chosen, *run, steps[run[0]]), runs):
            sys.stdout.write(json.dumps(row | about) + "\n")
            sys.stdout.flush()
            rows.append(row)
    if chosen.plot is not None:
        seeds = f"{chosen.seeds} seeds each" if chosen.seeds > 1 else "one seed each"
        plot(rows, chosen.plot, title=f"layouts of {chosen.preset} at its parameters, on {rows[0]['device']}, {seeds}")


if __name__ == "__main__":
    main()
