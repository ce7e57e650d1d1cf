"""`evo embed`: vectors of sequences, from the layers of a model."""

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
from sh2.reading.sites import Pooling, Tap


class Strand(StrEnum):
    """Which strands are read."""

    FORWARD = "forward"
    BOTH = "both"


class Combine(StrEnum):
    """What becomes of the vectors of two strands."""

    MEAN = "mean"
    CONCAT = "concat"


class Dtype(StrEnum):
    """In which numbers vectors are kept."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


def embed(
    model: BoxedModelOption = "",
    input: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="FASTA or GenBank, plain or gzip; `-` is stdin.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .h5, .npy, or .parquet (extra `parquet`).")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "-l",
            help="Numbers of blocks from 0, `all`, `norm` or names; commas between them."
            "  [default: the block at three quarters of the depth]",
        ),
    ] = None,
    tap: Annotated[Tap, typer.Option("--tap", help="What is taken of a block given by number.")] = Tap.RESIDUAL,
    pool: Annotated[Pooling, typer.Option("--pool", help="What becomes of a record's bases.")] = Pooling.MEAN,
    bed: Annotated[
        Path | None, typer.Option("--bed", help="Pool over these intervals instead of whole records: one vector each.")
    ] = None,
    strand: Annotated[Strand, typer.Option("--strand", help="Strands to read.")] = Strand.FORWARD,
    combine: Annotated[
        Combine | None, typer.Option("--combine", help="Both strands: their mean, or side by side.  [default: mean]")
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Numbers of the vectors.")] = Dtype.FLOAT32,
    keep_case: Annotated[
        bool, typer.Option("--keep-case", help="Read soft-masked bases as lower case instead of upper-casing them.")
    ] = False,
    list_layers: Annotated[
        bool, typer.Option("--list-layers", help="List the layers of the model as TSV, and do nothing else.")
    ] = False,
    overwrite: OverwriteOption = False,
    max_tokens: MaxTokensOption = 65536,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
    kv_dtype: KVDtypeOption = KVDtype.AUTO,
) -> None:
    """Embed sequences: one vector a record and layer, an interval or a base.

    Layers (--list-layers shows them): a number is a block, of which --tap takes the residual stream behind it, the
    output of its mixer or of its mlp before these are added, or what either reads, normed (mixer_norm, mlp_norm).
    Names do as well, ours (blocks.28.mlp) and those of the published code (blocks.28.mlp.l3 is the same). Layers
    between the middle and the end usually serve best; `all` is for finding out.

    Pooling (--pool): mean of all bases; last base, which alone has seen the whole record; max of each channel;
    second-half, the mean of the later half, which leaves out bases that have seen little; per-base, no pooling.
    --bed pools over each interval in the same ways, in the context of its record, which is the one of that name.

    The model is causal: a base's vector comes of itself and of what is before it. With --strand both, the reverse
    complement is read too. There a base's vector comes of itself and of what is behind it on the forward strand;
    `last` is the record's first base, `second-half` its first half. Positions count along the forward strand.

    \b
    .h5       embeddings/ID [layers, width], per base [bases, layers, width], of intervals [intervals, layers, width]
              with intervals/ID (start, end, name, strand); attributes: layers, and what made them
    .npy      [rows, layers, width], with OUT.ids.tsv (whose row is which) and OUT.meta.json
    .parquet  a row a vector: id, what it is of, a column of lists for each layer

    What is done is kept in OUT.partial; the same command goes on where it was stopped, even by a power cut. OUT appears
    when it is whole, and replaces what had its name.

    \b
    Examples:
      evo embed genes.fa --model run/model -o genes.h5
      evo embed genome.fa --model evo2_7b/ --layers 24,blocks.28.mlp.l3 --bed exons.bed --strand both -o exons.h5
      evo embed --list-layers --model evo2_7b | column -ts "$(printf '\\t')"
    """
    from evo_cli.embedding.run import EmbedRequest, print_layers, run_embed

    if list_layers:
        print_layers(model)
        return
    if input is None or output is None:
        raise typer.BadParameter("give INPUT and -o OUTPUT, or --list-layers", param_hint="INPUT")
    if combine is not None and strand is not Strand.BOTH:
        raise typer.BadParameter("is for --strand both", param_hint="--combine")
    if bed is not None and pool is Pooling.PER_BASE:
        raise typer.BadParameter("has one vector an interval: use mean, last, max or second-half", param_hint="--bed")
    request = EmbedRequest(
        input=input,
        output=output,
        layers=tuple(word.strip() for word in layers.split(",")) if layers is not None else None,
        tap=tap,
        pooling=pool,
        bed=bed,
        both_strands=strand is Strand.BOTH,
        concat=combine is Combine.CONCAT,
        dtype=dtype,
        keep_case=keep_case,
        overwrite=overwrite,
        max_tokens=max_tokens,
    )
    run_embed(request, model, device, precision, backend, kv_dtype)
