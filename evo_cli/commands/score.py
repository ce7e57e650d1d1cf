"""`evo score`: log-likelihoods of sequences, and of variants against a reference."""

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
from evo_cli.outputs.shards import Shard


class Strand(StrEnum):
    """Which strands of a variant's window are scored."""

    BOTH = "both"
    FORWARD = "forward"


class Indels(StrEnum):
    """How windows of insertions and deletions end; data.variants says more."""

    FIXED_LENGTH = "fixed-length"
    APPEND = "append"


class Mismatch(StrEnum):
    """What becomes of alleles whose REF is not the reference's; evo_cli.scoring.variant_table says more."""

    SKIP = "skip"
    FLAG = "flag"
    FAIL = "fail"


_VARIANT_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
_OF_SEQUENCES = ("per_base", "context", "condition", "prepend_eod", "keep_case")
_OF_VARIANTS = (
    "window", "strand", "indel_mode", "max_indel", "share_window", "suffix", "no_reuse", "on_ref_mismatch", "regions",
    "saturate", "background", "plot",
)  # fmt: skip


def score(
    ctx: typer.Context,
    model: BoxedModelOption = "",
    input: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="FASTA or GenBank, or VCF/BCF with --reference; `-` is stdin.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="FASTA of the genome that the variants lie on.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table; .gz and .parquet too, and for variants .vcf, .vcf.gz, .bcf."),
    ] = None,
    per_base: Annotated[
        Path | None, typer.Option("--per-base", help="Also write each base's log-probability, to this .tsv or .h5.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Bases that a base may look back on; all of its record by default."),
    ] = None,
    condition: Annotated[
        Path | None, typer.Option("--condition", help="Score every record as if that of this file stood before it.")
    ] = None,
    prepend_eod: Annotated[
        bool, typer.Option("--prepend-eod", help="Start a sequence as a document, so its first base is scored too.")
    ] = False,
    keep_case: Annotated[
        bool, typer.Option("--keep-case", help="Score soft-masked bases as lower case instead of upper-casing them.")
    ] = False,
    window: Annotated[int, typer.Option("--window", min=2, help="Bases around a variant, at most.")] = 8192,
    strand: Annotated[Strand, typer.Option("--strand", help="Strands of a variant's window to score.")] = Strand.BOTH,
    indel_mode: Annotated[
        Indels,
        typer.Option("--indel-mode", help="Take more or less of the contig, or let haplotypes differ in length."),
    ] = Indels.FIXED_LENGTH,
    max_indel: Annotated[
        int | None, typer.Option("--max-indel", min=0, help="Score no allele that changes the length by more.")
    ] = None,
    share_window: Annotated[
        int, typer.Option("--share-window", min=1, help="Variants in the same stretch of so many bases share a window.")
    ] = 1,
    suffix: Annotated[
        int | None, typer.Option("--suffix", min=0, help="Compare only so many bases after a variant.")
    ] = None,
    no_reuse: Annotated[
        bool, typer.Option("--no-reuse", help="Read each haplotype whole instead of sharing what comes before.")
    ] = False,
    on_ref_mismatch: Annotated[
        Mismatch, typer.Option("--on-ref-mismatch", help="What to do where REF is not what the reference has.")
    ] = Mismatch.SKIP,
    regions: Annotated[
        str | None, typer.Option("--regions", help="A BED file, or chr:first-last (from 1), for --saturate.")
    ] = None,
    saturate: Annotated[
        bool, typer.Option("--saturate", help="Score every single-base change of --regions, instead of an INPUT.")
    ] = False,
    background: Annotated[
        int, typer.Option("--background", min=0, help="Compare each variant with N matched random ones of its window.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Heat map of --saturate, PNG.")] = None,
    shard: Annotated[
        Shard | None,
        typer.Option("--shard", parser=Shard.parse, metavar="I/N", help="Do part I of N; `evo merge` joins them."),
    ] = None,
    overwrite: OverwriteOption = False,
    max_tokens: MaxTokensOption = 65536,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
    kv_dtype: KVDtypeOption = KVDtype.AUTO,
) -> None:
    """Score sequences, or variants against a reference, as a table.

    Sequences: one row a record, in order, with the columns
    record, length, log_likelihood, mean_log_likelihood, bits_per_base, perplexity.
    The first base has no prediction and is not counted, unless --prepend-eod or --condition. A long record costs
    attention to all of its past; with --context it is read in windows of that length, each half over the one before.

    Variants: one row an ALT allele, in order, with the columns
    chrom, pos, id, ref, alt, status, delta, delta_fwd, delta_rev, ref_ll, alt_ll, window_start, window_length, offset,
    delta_mean, normalised.
    delta is the log-likelihood of the window with ALT minus that with REF, the mean of both strands: negative means
    that the model finds ALT less likely; delta_mean is the same a base. status is ok, or why there is no score (then
    NA), or ok_ref_mismatch with --on-ref-mismatch flag. Windows are centred on the variant, shifted at contig ends,
    never padded; window_start is 0-based. normalised says whether the allele is left-aligned and as short as it can be.
    --background adds background (how many random variants there were), percentile (how many percent of them have a
    lower delta) and z.

    An interrupted run leaves OUT.partial, and the same command goes on after its last whole block; a finished one
    leaves OUT.meta.json, which says what was run, and the same command finds nothing to do. Other settings replace a
    finished output, but never a partial one unless --overwrite.

    A model that was trained with FP8 input projections and runs without (--precision bf16 or fp32), or one whose
    weights are kept in FP8 (fp8-weights), adds a last column, precision, to every row.

    \b
    Examples:
      evo score genes.fa --model run/model > scores.tsv
      evo score variants.vcf.gz --reference genome.fa --model run/model -o deltas.vcf.gz
      evo score --saturate --regions chr1:1000-1200 --reference genome.fa --model run/model -o map.tsv --plot map.png
      evo score variants.vcf --reference genome.fa --model run/model --shard 3/10 -o part3.tsv
      evo score genome.fa --model run/model --context 8192 -o records.tsv --per-base bases.h5
    """
    from functools import partial

    from evo_cli.inference import open_replicas
    from evo_cli.outputs.stream import check_outputs
    from evo_cli.scoring.request import ScoreRequest

    _check(input, reference, regions=regions, saturate=saturate)
    _check_outputs(output, plot, shard, saturate=saturate)
    check_outputs([output, per_base, plot], [input, reference, condition, regions])
    common = ScoreRequest(
        model=model,
        backend=backend,
        open=partial(open_replicas, model, device, precision, backend, kv_dtype),
        kv_dtype=kv_dtype,
        output=output,
        shard=shard,
        overwrite=overwrite,
    )
    if reference is None:
        from evo_cli.scoring.sequence_table import SequenceOptions, SequenceRequest, read_condition, score_sequences

        _refuse(ctx, _OF_VARIANTS, "is for variants, not for sequences")
        if condition is not None and context is not None:
            raise typer.BadParameter("would cut the condition off", param_hint="--context/--condition")
        reading = SequenceOptions(
            prepend_eod=prepend_eod,
            keep_case=keep_case,
            per_base=per_base is not None,
            context=context,
            condition=read_condition(condition, keep_case=keep_case) if condition is not None else b"",
            max_tokens=max_tokens,
        )
        score_sequences(common, SequenceRequest(sequences=str(input), per_base=per_base, scoring=reading))
        return
    from data.variants import IndelMode, WindowRule
    from evo_cli.scoring.variant_table import RefMismatch, VariantOptions, VariantRequest, score_variants

    _refuse(ctx, _OF_SEQUENCES, "is for sequences, not for variants")
    rule = WindowRule(
        length=window,
        indels=IndelMode(indel_mode),
        max_indel=max_indel,
        share=share_window,
        ignore_ref=on_ref_mismatch is Mismatch.FLAG,
    )
    scoring = VariantOptions(
        rule=rule, both_strands=strand is Strand.BOTH, suffix=suffix, reuse=not no_reuse, max_tokens=max_tokens
    )
    score_variants(
        common,
        VariantRequest(
            variants=input,
            regions=regions,
            reference=reference,
            scoring=scoring,
            on_mismatch=RefMismatch(on_ref_mismatch),
            background=background,
            plot=plot,
        ),
    )


def _check(input: str | None, reference: Path | None, *, regions: str | None, saturate: bool) -> None:
    """Refuse what leaves open what is to be scored."""
    if saturate != (regions is not None):
        raise typer.BadParameter("belong together: give both or neither", param_hint="--regions/--saturate")
    if saturate and input is not None:
        raise typer.BadParameter(f"scores all changes of --regions, and takes no {input}", param_hint="--saturate")
    if not saturate and input is None:
        raise typer.BadParameter("is missing: give sequences, or variants with --reference", param_hint="INPUT")
    if reference is None and (saturate or (input or "").lower().endswith(_VARIANT_SUFFIXES)):
        raise typer.BadParameter(
            f"{input or regions} holds variants: give the genome they lie on", param_hint="--reference"
        )


def _check_outputs(output: Path | None, plot: Path | None, shard: Shard | None, *, saturate: bool) -> None:
    """Refuse what cannot be written."""
    if shard is not None and (output is None or output.name.lower().endswith(_VARIANT_SUFFIXES)):
        raise typer.BadParameter("parts are tables (.tsv, .tsv.gz, .parquet), given with -o", param_hint="--shard")
    if plot is not None and (not saturate or output is None or shard is not None):
        raise typer.BadParameter("draws a whole --saturate that is written with -o", param_hint="--plot")


def _refuse(ctx: typer.Context, names: tuple[str, ...], reason: str) -> None:
    """Refuse options that were given and would do nothing."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(reason, param_hint=f"--{name.replace('_', '-')}")
