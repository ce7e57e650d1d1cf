"""`evo scan`: tracks of whole contigs for genome browsers."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo_cli.inference import (
    BackendName,
    BackendOption,
    BoxedModelOption,
    DeviceOption,
    KVDtype,
    KVDtypeOption,
    MaxTokensOption,
    OverwriteOption,
    Precision,
    PrecisionOption,
)


class Format(StrEnum):
    """How tracks are written."""

    BEDGRAPH = "bedgraph"
    BEDGRAPH_GZ = "bedgraph.gz"
    BIGWIG = "bigwig"


class Strands(StrEnum):
    """Which strands are scanned."""

    FORWARD = "forward"
    REVERSE = "reverse"
    BOTH = "both"


def scan(
    genome: Annotated[Path, typer.Argument(metavar="GENOME", help="FASTA or GenBank, plain or gzip.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PREFIX", help="What the files' names begin with.")],
    model: BoxedModelOption = "",
    tracks: Annotated[
        str, typer.Option("--tracks", help="Which of logprob, entropy and acgt, with commas between them.")
    ] = "logprob,entropy,acgt",
    strand: Annotated[
        Strands, typer.Option("--strand", help="both also writes the mean of the two strands.")
    ] = Strands.FORWARD,
    form: Annotated[
        Format, typer.Option("--format", help="bedgraph.gz is bgzip, for tabix; bigwig needs the extra `tracks`.")
    ] = Format.BEDGRAPH,
    context: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Bases that a base may look back on; all of its contig by default."),
    ] = None,
    prepend_eod: Annotated[
        bool, typer.Option("--prepend-eod", help="Start a contig as a document, so its first base is predicted too.")
    ] = False,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            "--regions", metavar="RULE", help="Also write a BED file of where, say, 'entropy<1.5'; repeatable."
        ),
    ] = None,
    smooth: Annotated[int, typer.Option("--smooth", min=1, help="Bases over which --regions takes means.")] = 50,
    min_length: Annotated[int, typer.Option("--min-length", min=1, help="Least length of a region, in bp.")] = 50,
    plot: Annotated[
        list[str] | None,
        typer.Option("--plot", metavar="CONTIG:FIRST-LAST", help="Also draw a region as PNG; repeatable."),
    ] = None,
    overwrite: OverwriteOption = False,
    max_tokens: MaxTokensOption = 65536,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
    kv_dtype: KVDtypeOption = KVDtype.AUTO,
) -> None:
    """Run along every contig and write what the model predicts of each base, as tracks for genome browsers.

    \b
    Files: PREFIX.TRACK.STRAND.bedgraph (.bedgraph.gz, .bw), and PREFIX.meta.json with what made them. The tracks:
      logprob   log-probability of the base, natural logarithm
      entropy   of the prediction, in bits: 0 is sure, 2 knows nothing; of A, C, G, T alone
      acgt      four tracks A, C, G, T: the probability of each base (not of the others of the model's vocabulary)

    A base is predicted from those to its left. On the reverse strand the model reads the reverse complement, so a base
    is predicted from those to its right; the tracks keep the contig's positions, and A is the probability of A on the
    contig. `mean` is the mean of both strands, where both have a value. The first base in reading direction has no
    prediction and is absent, unless --prepend-eod.

    The state is carried along a contig: there are no windows and no seams. Attention looks back on all of the contig,
    which whole chromosomes make costly: with --context N it is read in windows of N, each half over the one before.

    Regions (--regions, PREFIX.regions.bed): where the mean of --smooth bases around each lies below or above a number,
    for --min-length bases or more; of the mean of both strands if there is one. The last column is the track's mean.

    Memory does not grow with the tracks, except for bigwig: about 15 bytes for every base, while a file is written.

    What was computed is kept in PREFIX.partial until all is written: 4 bytes for every base, track and strand. The
    same command goes on after the last contig that was finished.

    \b
    Examples:
      evo scan genome.fa --model run/model -o out/genome --context 8192
      evo scan phage.fa --model run/model -o phage --strand both --format bigwig --plot phage:1-5000
      evo scan genome.fa --model run/model -o genome --tracks entropy --regions 'entropy<1.5' --smooth 100
    """
    from functools import partial

    from data.intervals import Interval
    from data.regions import Rule
    from data.tracks import TrackFormat
    from evo_cli.scanning.run import Request, parsed, run_scan
    from evo_cli.scanning.tracks import ScanOptions, Strand, parse_tracks

    rule = partial(Rule.parse, window=smooth, least=min_length)
    request = Request(
        genome=genome,
        prefix=output,
        options=ScanOptions(
            tracks=parsed("--tracks", parse_tracks, tracks),
            context=context,
            prepend_eod=prepend_eod,
            max_tokens=max_tokens,
        ),
        scanned=(Strand.FORWARD, Strand.REVERSE) if strand is Strands.BOTH else (Strand(strand),),
        form=TrackFormat(form),
        rules=tuple(parsed("--regions", rule, text) for text in regions or []),
        plots=tuple(parsed("--plot", Interval.parse, text) for text in plot or []),
    )
    run_scan(
        request,
        model=model,
        device=device,
        precision=precision,
        backend=backend,
        kv_dtype=kv_dtype,
        overwrite=overwrite,
    )
