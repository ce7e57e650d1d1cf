"""`evo score`: log-likelihoods of sequences, and of variants against a reference."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, DeviceOption, ModelOption, Precision, PrecisionOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from evo_cli.sequence_scores import SequenceOptions
    from evo_cli.variant_scores import VariantOptions
    from sh2.model import StripedHyena2
    from sh2.replicas import Replicas


class Strand(StrEnum):
    """Which strands of a variant's window are scored."""

    BOTH = "both"
    FORWARD = "forward"


_VARIANT_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")


def score(
    input: Annotated[
        str, typer.Argument(metavar="INPUT", help="FASTA or GenBank, or VCF/BCF with --reference; `-` is stdin.")
    ],
    model: ModelOption,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="FASTA of the genome that the variants lie on.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="TSV file; stdout if not given.")] = None,
    per_base: Annotated[
        Path | None, typer.Option("--per-base", help="Also write each base's log-probability to this TSV file.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Bases that a base may look back on; all of its record by default."),
    ] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Bases around a variant, at most.")] = 8192,
    strand: Annotated[Strand, typer.Option("--strand", help="Strands of a variant's window to score.")] = Strand.BOTH,
    prepend_eod: Annotated[
        bool, typer.Option("--prepend-eod", help="Start a sequence as a document, so its first base is scored too.")
    ] = False,
    keep_case: Annotated[
        bool, typer.Option("--keep-case", help="Score soft-masked bases as lower case instead of upper-casing them.")
    ] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens in one batch, at most.")] = 65536,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Score sequences, or variants against a reference, as TSV.

    Sequences: one row a record, in order, with the columns
    record, length, log_likelihood, mean_log_likelihood, bits_per_base.
    The first base has no prediction and is not counted, unless --prepend-eod. A long record costs attention to all of
    its past; with --context it is read in windows of that length, each half over the one before.

    Variants: one row an ALT allele, in order, with the columns
    chrom, pos, id, ref, alt, status, delta, delta_fwd, delta_rev, ref_ll, alt_ll, window_start, window_length, offset.
    delta is the log-likelihood of the window with ALT minus that with REF, the mean of both strands: negative means
    that the model finds ALT less likely. status is ok, or why there is no score (then NA). Windows are centred on the
    variant, shifted at contig ends, never padded; window_start is 0-based.

    A model that was trained with FP8 input projections and runs without (--precision bf16 or fp32) adds a last column,
    precision, to every row.

    \b
    Examples:
      evo score genes.fa --model run/model > scores.tsv
      evo score variants.vcf.gz --reference genome.fa --model run/model -o deltas.tsv
      evo score genome.fa --model run/model --context 8192 --per-base bases.tsv
    """
    from functools import partial

    from evo_cli.inference import load_model
    from evo_cli.output import check_outputs

    if reference is None and input.lower().endswith(_VARIANT_SUFFIXES):
        raise typer.BadParameter(f"{input} holds variants: give the genome they lie on", param_hint="--reference")
    check_outputs([output, per_base], [input, reference])
    load = partial(load_model, model, device, precision, backend)
    if reference is None:
        from evo_cli.sequence_scores import SequenceOptions

        options = SequenceOptions(
            prepend_eod=prepend_eod,
            keep_case=keep_case,
            per_base=per_base is not None,
            context=context,
            max_tokens=max_tokens,
        )
        sequences(input, load, options, output=output, per_base=per_base)
        return
    if per_base is not None or context is not None or prepend_eod or keep_case:
        raise typer.BadParameter(
            "is for sequences, not for variants", param_hint="--per-base/--context/--prepend-eod/--keep-case"
        )
    from data.variants import WindowRule
    from evo_cli.inference import open_replicas
    from evo_cli.variant_scores import VariantOptions

    scoring = VariantOptions(rule=WindowRule(length=window), both_strands=strand is Strand.BOTH, max_tokens=max_tokens)
    variants(input, reference, partial(open_replicas, model, device, precision, backend), scoring, output=output)


def line(cells: "Iterable[str]", mark: str | None) -> str:
    """A row of a table; the mark, if there is one, is its last cell."""
    return "\t".join([*cells, *([mark] if mark else [])]) + "\n"


def variants(
    path: str,
    reference_path: Path,
    load: "Callable[[], Replicas]",
    options: "VariantOptions",
    *,
    output: Path | None,
) -> None:
    """Write one row an allele, and say on stderr how many were scored and why the others were not."""
    from collections import Counter
    from itertools import chain, islice

    from data.reference import Reference
    from data.vcf import read_vcf
    from evo_cli.inference import mark_of, say, warn
    from evo_cli.output import open_output
    from evo_cli.progress import progress_bar
    from evo_cli.variant_scores import COLUMNS, score_alleles

    reference = Reference(reference_path)
    alleles = read_vcf(Path(path))
    # a file that cannot be read is found before the model takes its time
    head = list(islice(alleles, 1))
    replicas = load()
    mark = mark_of(replicas.config, replicas.precision)
    statuses: Counter[str] = Counter()
    with open_output(output) as stream, progress_bar("score") as bar:
        stream.write(line(COLUMNS, mark and "precision"))
        for result in score_alleles(replicas, chain(head, alleles), reference, options):
            stream.write(line(result.row(), mark))
            statuses[str(result.status)] += 1
            bar.update(statuses.total(), fields={"scored": f"{statuses['ok']:,}"})
    counts = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common()) or "none"
    say(f"{statuses.total():,} alleles: {counts}")
    if head and statuses["missing_contig"] == statuses.total():
        names = ", ".join(f"`{name}`" for name in islice(reference.contigs, 3))
        warn(f"no allele lies on a contig of {reference_path}: it has {names} ..., the first allele `{head[0].chrom}`")


def sequences(
    path: str,
    load: "Callable[[], StripedHyena2]",
    options: "SequenceOptions",
    *,
    output: Path | None,
    per_base: Path | None,
) -> None:
    """Write one row a record and, if asked for, one a base."""
    from contextlib import ExitStack
    from itertools import chain, islice

    from data.reader import read_records
    from evo_cli.inference import precision_mark, say
    from evo_cli.output import open_output
    from evo_cli.progress import counter
    from evo_cli.sequence_scores import BASE_COLUMNS, COLUMNS, score_records

    records = read_records(path)
    # a file that cannot be read is found before the model takes its time
    head = list(islice(records, 1))
    model = load()
    trained = model.config.context
    if head and options.context is None and len(head[0].sequence) > trained:
        say(
            f"`{head[0].name}` has {len(head[0].sequence):,} bp, more than the {trained:,} of the model's training: "
            f"--context {trained} reads it in windows, faster"
        )
    mark = precision_mark(model)
    lower = 0
    with ExitStack() as stack:
        stream = stack.enter_context(open_output(output))
        base_stream = stack.enter_context(open_output(per_base)) if per_base else None
        advance = stack.enter_context(counter("score"))
        stream.write(line(COLUMNS, mark and "precision"))
        if base_stream:
            base_stream.write(line(BASE_COLUMNS, mark and "precision"))
        for result in score_records(model, chain(head, records), options, advance):
            stream.write(line(result.row(), mark))
            if base_stream:
                base_stream.writelines(line(row, mark) for row in result.base_rows())
            lower += result.record.sequence != result.record.sequence.upper()
    if lower and not options.keep_case:
        say(f"{lower:,} records hold lower-case (soft-masked) bases: scored as upper case (--keep-case keeps them)")
