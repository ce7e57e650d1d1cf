"""`evo merge`: the parts of a job array as one table."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="What `evo score --shard i/n -o PART` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Table: .tsv, .tsv.gz, .parquet, .vcf, .vcf.gz; or stdout.")
    ] = None,
) -> None:
    """Join the parts of `evo score --shard i/n`, in the order of the input.

    All parts must be there, finished, and of one run: the same model, input, options and version, as the .meta.json
    beside each part says. Their order on the command line does not matter, nor does their format. VCF is made from the
    scored VCF, which must still be where it was. Files of --per-base stay in parts: each row names its record.

    \b
    Examples:
      for i in 1 2 3; do evo score v.vcf -r genome.fa -m run/model --shard $i/3 -o part$i.tsv; done
      evo merge part*.tsv -o scores.tsv
      evo merge part*.tsv -o scores.vcf.gz
    """
    from evo_cli.outputs.merge import merge_parts
    from evo_cli.outputs.stream import check_outputs

    check_outputs([output], list(parts))
    merge_parts(parts, output)
