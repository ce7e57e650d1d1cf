"""Time reading a VCF and building windows of random SNVs of E. coli 536, without a model; print a table of one row.

OMP_NUM_THREADS=1 python tests/benchmarks/variants.py --variants 1000000

Memory is the resident set after a tenth of the variants and after all: equal when nothing is kept.
"""

import argparse
import gzip
import random
import sys
import tempfile
import time
from pathlib import Path

from data.reference import READ_WHOLE, Reference
from data.variants import VariantStatus, WindowRule, variant_window
from data.vcf import read_vcf

GENOME = Path(__file__).parents[1] / "assets" / "genomes" / "ecoli_536_NC_008253.fna.gz"
COLUMNS = ("variants", "window", "indexed", "read_per_s", "read_and_windows_per_s", "mib_at_a_tenth", "mib_at_the_end")


def write_snvs(path: Path, reference: Reference, count: int) -> None:
    """Random SNVs, in random order."""
    rng = random.Random(0)
    contig, length = next(iter(reference.contigs.items()))
    bases = reference.fetch(contig, 0, length).decode().upper()
    with path.open("w") as file:
        file.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        for _ in range(count):
            at = rng.randrange(length)
            alt = rng.choice("ACGT".replace(bases[at], ""))
            file.write(f"{contig}\t{at + 1}\t.\t{bases[at]}\t{alt}\t.\t.\t.\n")


def resident_mib() -> float:
    """Memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def build_windows(path: Path, reference: Reference, rule: WindowRule, tenth: int) -> tuple[float, float]:
    """Seconds for all windows, and the memory held after a tenth of them."""
    start, early = time.perf_counter(), 0.0
    for number, allele in enumerate(read_vcf(path), 1):
        made = variant_window(reference, allele, rule)
        assert made.status is VariantStatus.OK
        if number == tenth:
            early = resident_mib()
    return time.perf_counter() - start, early


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--indexed", action="store_true", help="read the genome in blocks, as a large one is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, genome = Path(folder) / "snvs.vcf", GENOME
        if options.indexed:
            genome = Path(folder) / "genome.fa"
            genome.write_bytes(gzip.decompress(GENOME.read_bytes()))
        with Reference(genome, read_whole=0 if options.indexed else READ_WHOLE) as reference:
            write_snvs(path, reference, options.variants)
            start = time.perf_counter()
            count = sum(1 for _ in read_vcf(path))
            reading = time.perf_counter() - start
            building, early = build_windows(path, reference, WindowRule(length=options.window), max(1, count // 10))
    row = (
        *(str(count), str(options.window), "yes" if options.indexed else "no"),
        *(f"{count / reading:.0f}", f"{count / building:.0f}", f"{early:.1f}", f"{resident_mib():.1f}"),
    )
    sys.stdout.write("\t".join(COLUMNS) + "\n" + "\t".join(row) + "\n")


if __name__ == "__main__":
    main()
