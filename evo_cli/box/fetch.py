"""Fetch the sequences that a list names from NCBI, each checked against the list: `make nano` calls this.

python -m evo_cli.box.fetch LIST.tsv OUTPUT.fa.gz
"""

import csv
import gzip
import hashlib
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from Bio import Entrez, SeqIO

from data.atomic import replacing
from data.errors import DataError

AT_ONCE = 20  # records a request
_LINE = 80


class Listed(NamedTuple):
    """A record of the list, whose order the output keeps."""

    accession: str
    bases: int
    sha256: str  # of the upper-case sequence


def read_list(path: Path) -> list[Listed]:
    """Read a table with the columns accession, bases and sha256."""
    with path.open() as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [Listed(row["accession"], int(row["bases"]), row["sha256"]) for row in rows]


def fetch(listed: list[Listed]) -> Iterator[tuple[Listed, bytes]]:
    """Yield every record of a list with its sequence.

    Raises:
        DataError: a record is not the listed one, or there is none; it is named.
    """
    Entrez.tool, Entrez.email = "evo", "unknown"  # type: ignore[assignment]
    for first in range(0, len(listed), AT_ONCE):
        some = listed[first : first + AT_ONCE]
        with Entrez.efetch(
            db="nuccore", id=",".join(one.accession for one in some), rettype="fasta", retmode="text"
        ) as answer:
            text = answer.read()
        found = {record.id: str(record.seq).upper().encode() for record in SeqIO.parse(StringIO(text), "fasta")}
        for one in some:
            sequence = found.get(one.accession, b"")
            if hashlib.sha256(sequence).hexdigest() != one.sha256:
                raise DataError(
                    f"{one.accession}: NCBI gave {len(sequence):,} bases that are not the {one.bases:,} of the list"
                ).hint("try again; if it stays so, the record was changed, and another model comes of it")
            yield one, sequence


def main(listed: Path, output: Path) -> None:
    """Write what a list names as gzip FASTA; whole or not at all."""
    records = read_list(listed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial, gzip.open(partial, "wt") as file:
        for number, (one, sequence) in enumerate(fetch(records), 1):
            text = sequence.decode()
            lines = (text[first : first + _LINE] for first in range(0, len(text), _LINE))
            file.write(f">{one.accession}\n" + "\n".join(lines) + "\n")
            sys.stderr.write(f"{number}/{len(records)} {one.accession}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
