"""Score many SNVs of E. coli 536 with a very small model, and print what memory the process holds on the way, as JSON.

OMP_NUM_THREADS=1 python tests/benchmarks/memory.py --variants 1000000

The command is `evo score`, of a VCF, in a process of its own; memory is its resident set (Linux), read ten times a
second. Equal at a tenth and at the end when nothing is kept of what was scored.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from data.intervals import Interval
from data.reference import Reference
from data.saturation import saturate
from sh2.checkpoint.loading import save_model
from sh2.config import ModelConfig
from sh2.model import StripedHyena2

GENOME = Path(__file__).parents[1] / "assets" / "genomes" / "ecoli_536_NC_008253.fna.gz"
CONFIG = ModelConfig(width=8, layout="S*", num_heads=1, mlp_width=16, se_groups=2, mr_groups=2, context=64)
PIECES = 10  # of the run, of each of which the largest resident set is told


def write_snvs(path: Path, count: int) -> None:
    """Every change of one base after the other, a fifth of the genome apart from its beginning."""
    with Reference(GENOME) as reference, path.open("w") as file:
        contig, length = next(iter(reference.contigs.items()))
        file.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        changes = saturate(reference, [Interval(contig, length // 5, length)])
        for allele in islice(changes, count):
            file.write(f"{contig}\t{allele.pos}\t.\t{allele.ref}\t{allele.alt}\t.\t.\t.\n")


def watch(process: subprocess.Popen[bytes], partial: Path, count: int) -> list[float]:
    """The most MiB that a process held while each tenth of the rows was written."""
    most = [0.0] * PIECES
    written = end = 0
    while process.poll() is None:
        time.sleep(0.1)
        if partial.exists():
            with partial.open("rb") as file:
                file.seek(end)
                written += file.read().count(b"\n")
                end = file.tell()
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()
        piece = min(PIECES - 1, written * PIECES // count)
        most[piece] = max(most[piece], int(pages[1]) * 4096 / 2**20 if len(pages) > 1 else 0.0)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=1_000_000)
    count = parser.parse_args().variants
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(StripedHyena2(CONFIG), folder / "model")
        write_snvs(folder / "snvs.vcf", count)
        output = folder / "scores.tsv"
        options = ["--window", "64", "--share-window", "32", "--suffix", "0", "--device", "cpu"]
        command = ["score", folder / "snvs.vcf", "--reference", GENOME, "--model", folder / "model", "-o", output]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "evo_cli", *map(str, command), *options], stderr=subprocess.DEVNULL
        )
        most = watch(process, Path(f"{output}.partial"), count)
        seconds = time.perf_counter() - start
        assert process.returncode == 0, f"evo score ended with {process.returncode}"
        with output.open("rb") as file:
            rows = sum(1 for _ in file) - 1
    row = {"variants": rows, "seconds": round(seconds, 1), "mib_in_each_tenth": [round(one, 1) for one in most]}
    sys.stdout.write(json.dumps({"what": "memory of evo score over SNVs of E. coli 536"} | row) + "\n")


if __name__ == "__main__":
    main()
