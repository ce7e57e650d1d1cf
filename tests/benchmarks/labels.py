"""Make tables of what is known of variants from public files, for `evo score` and `evo eval variants`.

python tests/benchmarks/labels.py observed phix174.fna isolates.vcf > labels.tsv
python tests/benchmarks/labels.py promoter ecoli_K12.fna sortseq.csv.gz > lac.vcf

observed: every single-base change of a genome of one record, whether isolates have it, and which kind it is. promoter:
the lac promoters of Kinney et al. 2010 (`sortseq_data.csv.gz` of MAVE-NN), those of its test set, as changes of the
genome that has the commonest one, with the mean bin that cells with each were sorted into.
"""

import argparse
import csv
import gzip
import sys
from collections import Counter
from pathlib import Path

from data.labels import read_labels
from data.reader import read_records
from data.sequence import reverse_complement, to_upper_dna

TRANSITIONS = {"AG", "GA", "CT", "TC"}
BINS = 10


def genome_of(path: Path) -> tuple[str, str]:
    (record,) = read_records(path)
    return record.name or "genome", to_upper_dna(record.sequence).decode()


def observed(genome: Path, isolates: Path) -> None:
    """Write a table of every change."""
    name, bases = genome_of(genome)
    seen = {(position, alt) for (_, position, _, alt), _ in read_labels(isolates, [])}
    sys.stdout.write("chrom\tpos\tref\talt\tobserved\tkind\n")
    for position, ref in enumerate(bases, start=1):
        for alt in sorted(set("ACGT") - {ref}):
            kind = "transition" if ref + alt in TRANSITIONS else "transversion"
            known = "yes" if (position, alt) in seen else "no"
            sys.stdout.write(f"{name}\t{position}\t{ref}\t{alt}\t{known}\t{kind}\n")


def promoter(genome: Path, table: Path) -> None:
    """Write a VCF of whole promoters."""
    name, bases = genome_of(genome)
    with gzip.open(table, "rt", newline="") as stream:
        rows = list(csv.DictReader(stream))
    wild = "".join(Counter(letters).most_common(1)[0][0] for letters in zip(*(row["x"] for row in rows), strict=True))
    # the lac operon lies on the other strand
    here = reverse_complement(wild.encode()).decode()
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        if row["set"] == "test" and row["x"] != wild:
            counts.setdefault(row["x"], Counter()).update({bin: int(row[f"ct_{bin}"]) for bin in range(BINS)})
    sys.stdout.write(f"##fileformat=VCFv4.2\n##contig=<ID={name},length={len(bases)}>\n")
    sys.stdout.write('##INFO=<ID=BIN,Number=1,Type=Float,Description="mean bin of cells">\n')
    sys.stdout.write("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
    for text, bins in counts.items():
        alt, mean = reverse_complement(text.encode()).decode(), sum(n * k for k, n in bins.items()) / bins.total()
        sys.stdout.write(f"{name}\t{bases.index(here) + 1}\t.\t{here}\t{alt}\t.\t.\tBIN={mean:.4f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["observed", "promoter"])
    parser.add_argument("genome", type=Path, help="FASTA of one record")
    parser.add_argument("known", type=Path, help="VCF of isolates; or the table of promoters")
    chosen = parser.parse_args()
    {"observed": observed, "promoter": promoter}[chosen.what](chosen.genome, chosen.known)


if __name__ == "__main__":
    main()
