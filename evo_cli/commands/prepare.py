"""`evo prepare`: sequence files in, one token store out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SplitUnit(StrEnum):
    """What goes to a split as a whole."""

    AUTO = "auto"
    RECORD = "record"
    REGION = "region"


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="FASTA, GenBank or EMBL files, folders, 'patterns*'; `-` is stdin."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE.h5", help="The token store to write.")],
    split_by: Annotated[
        SplitUnit, typer.Option("--split-by", help="Unit of a split; auto: region below 100 records, else record.")
    ] = SplitUnit.AUTO,
    valid: Annotated[float, typer.Option("--valid", min=0, max=1, help="Fraction of the units for validation.")] = 0.05,
    test: Annotated[float, typer.Option("--test", min=0, max=1, help="Fraction of the units for testing.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another split.")] = 0,
    region_length: Annotated[
        int, typer.Option("--region-length", min=1024, help="Bases of a region; less where the input has not 40 such.")
    ] = 32768,
    min_length: Annotated[
        int, typer.Option("--min-length", min=1, max=10_000_000, help="Skip records of fewer bases.")
    ] = 1,
    tags: Annotated[
        Path | None,
        typer.Option("--tags", metavar="TSV", help="Taxonomy tags: columns `record` and `tag`.", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that is no token store; redo one that is up to date.")
    ] = False,
) -> None:
    """Turn FASTA, GenBank or EMBL into one token store to train on.

    Formats and gzip are told by content, not by name. Case is kept (lower case is soft-masking), U becomes T,
    ambiguity codes are kept but never trained on; what is not DNA is an error with its file, line and record. Which
    split a record or region belongs to follows from its bases alone: equal records go together, and neither the order
    nor the names of files matter. The store appears whole or not at all; run again on the same files and options,
    nothing is done.

    stdout: a table of two columns, `what` and `count`:
    records, bases, tokens (bases and one end a record); skipped_bases (all), then by reason skipped_bases_short,
    skipped_records_short (under --min-length), skipped_records_empty; in the store but special:
    masked_bases_ambiguous (no loss on them), lower_case_bases, converted_bases_u (U to T); then the segments and bases
    of train, valid and test.

    \b
    Examples:
      evo prepare genome.fa.gz -o genome.h5
      evo prepare genomes/ 'more/*.gbk' -o all.h5 --valid 0.02 --test 0.02
      zcat contigs.fa.gz | evo prepare - -o contigs.h5 --min-length 1000 --split-by record
      evo prepare genomes/ -o tagged.h5 --tags taxonomy.tsv
    """
    if valid + test >= 1:
        raise typer.BadParameter("--valid and --test must together stay below 1", param_hint="--valid")
    from data.prepare import PrepareOptions
    from data.prepare import prepare as write_store
    from data.splits import SplitBy
    from evo_cli.inference import say, warn
    from evo_cli.progress import progress_bar

    options = PrepareOptions(
        split_by=SplitBy(split_by.value),
        valid=valid,
        test=test,
        seed=seed,
        region_length=region_length,
        min_length=min_length,
        tags=tags,
        force=force,
    )
    with progress_bar("prepare") as bar:
        report = write_store(inputs, output, options, lambda done, total: bar.update(done, total or None))
    for warning in report.warnings:
        warn(warning)
    say(f"{output}: {'up to date, nothing to do' if report.unchanged else 'written'} (sha256 {report.checksum})")
    for what, count in [("what", "count"), *report.rows()]:
        typer.echo(f"{what}\t{count}")
