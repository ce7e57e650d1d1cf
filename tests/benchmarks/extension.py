"""Extend a model's context in stages by each method; print a line of JSON a stage: bits by position, and recall.

python tests/benchmarks/extension.py far.h5 --from run/model --test ecoli.fna.gz --output runs/

Methods run side by side on one GPU, each stage from the one before; beside them the model as it is, read beyond its
context. Runs are those of `evo train`; figures are those of `evo eval positions` and `evo eval recall`, whose pictures
lie in the output folder. What is there already is not run again.
"""

import argparse
import csv
import io
import json
import shlex
import sys
from pathlib import Path

import torch
from layouts import evo, finished

METHODS = "interpolation", "base", "both"


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def measure(chosen: argparse.Namespace, models: dict[str, Path], context: int) -> list[dict[str, object]]:
    """Read the test sequence, and look for needles, with every model."""
    pictures = {name: chosen.output / f"{name}_{context}" for name in models}
    positions = finished(
        *(
            evo(
                "eval", "positions", str(chosen.test), "--model", str(model), "--context", str(context),
                "--plot", f"{pictures[name]}_positions.png",
            )
            for name, model in models.items()
        )
    )  # fmt: skip
    recalls = finished(
        *(
            evo(
                "eval", "recall", "--model", str(model), "--lengths", f"1024,{context - 256}", "--haystack",
                str(chosen.test), "--plot", f"{pictures[name]}_recall.png",
            )
            for name, model in models.items()
        )
    )  # fmt: skip
    return [
        {
            "method": name,
            "context": context,
            "bits_per_base": {row["first"]: float(row["bits_per_base"]) for row in table(found)},
            "errors": {row["first"]: float(row["error"]) for row in table(found)},
            "recall": {f"{row['length']} at {row['depth']}": float(row["accuracy"]) for row in table(recalled)},
        }
        for name, found, recalled in zip(models, positions, recalls, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="of `evo prepare`, to train on")
    parser.add_argument("--from", dest="model", type=Path, required=True, help="the model to extend")
    parser.add_argument("--test", type=Path, required=True, help="FASTA to measure on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--contexts", default="32768,131072")
    parser.add_argument("--tokens", type=int, default=1 << 17, help="of an update, at least a window")
    parser.add_argument("--steps", type=int, default=60, help="of a stage")
    parser.add_argument("--train", default="--lr 5e-4 --warmup-fraction 0.1", help="further options of training")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    about = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "command": shlex.join(["python", "tests/benchmarks/extension.py", *sys.argv[1:]]),
    }
    models = dict.fromkeys(METHODS, chosen.model)
    for context in map(int, chosen.contexts.split(",")):
        folders = {method: chosen.output / f"{method}_{context}" for method in METHODS}
        finished(
            *(
                evo(
                    "train", str(chosen.store), "--from", str(models[method]), "--extend-by", method,
                    "--length", str(context), "--batch-size", str(max(1, chosen.tokens // context)),
                    "--steps", str(chosen.steps), "--save-every", "0", "--valid-every", "0",
                    *shlex.split(chosen.train), "-o", str(folder),
                )
                for method, folder in folders.items()
                if not (folder / "model").exists()
            )
        )  # fmt: skip
        models = {method: folder / "model" for method, folder in folders.items()}
        for row in measure(chosen, {"none": chosen.model, **models}, context):
            sys.stdout.write(json.dumps(row | about) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
