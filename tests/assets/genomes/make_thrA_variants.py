"""Write made-up variants of the gene thrA of E. coli 536: silent and stop-making SNVs of its codons, and small indels.

python tests/assets/genomes/make_thrA_variants.py > tests/assets/genomes/ecoli_536_thrA.vcf
"""

import sys
from pathlib import Path

from data.reader import read_records

GENE_START = b"ATGCGAGTGTTGAAGTTCGGCGG"  # the first codons of thrA
COUNT = 20
BASES = "ACGT"
CODE = dict(
    zip(
        (a + b + c for a in "TCAG" for b in "TCAG" for c in "TCAG"),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
)


def snv(genome: str, place: int, kind: str) -> tuple[int, str] | None:
    """The first base change of the codon at `place` that is silent, or that makes a stop; None if there is none."""
    codon = genome[place : place + 3]
    for offset in (2, 1, 0):
        for base in BASES:
            changed = codon[:offset] + base + codon[offset + 1 :]
            same = CODE[changed] == CODE[codon]
            if changed != codon and (same if kind == "silent" else CODE[changed] == "*"):
                return place + offset, base
    return None


def main() -> None:
    (record,) = read_records(Path(__file__).with_name("ecoli_536_NC_008253.fna.gz"))
    genome = record.sequence.decode()
    start = genome.index(GENE_START.decode())
    rows = []
    for kind in ("silent", "stop"):
        found = [change for codon in range(10, 810) if (change := snv(genome, start + 3 * codon, kind))]
        rows += [
            (place, f"{kind}_{number}", genome[place], base)
            for number, (place, base) in enumerate(found[:: len(found) // COUNT][:COUNT], start=1)
        ]
    for number, place in enumerate((start + 301, start + 1204), start=1):
        rows.append((place, f"insertion_{number}", genome[place], genome[place] + "A"))
        rows.append((place + 90, f"deletion_{number}", genome[place + 90 : place + 92], genome[place + 90]))
    sys.stdout.write("##fileformat=VCFv4.2\n##source=made up by make_thrA_variants.py\n")
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    sys.stdout.write(f"##contig=<ID={record.name},length={len(genome)}>\n{columns}\n")
    for place, name, ref, alt in sorted(rows):
        sys.stdout.write(f"{record.name}\t{place + 1}\t{name}\t{ref}\t{alt}\t.\t.\t.\n")


if __name__ == "__main__":
    main()
