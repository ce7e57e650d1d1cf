"""`evo eval`: how well a model predicts held-out DNA, and the baselines it has to beat."""

from enum import StrEnum
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, DeviceOption, ModelOption, Precision, PrecisionOption

if TYPE_CHECKING:
    from evo_cli.evaluation.held_out import Bases

evaluate = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a model on held-out DNA, and the baselines it has to beat.",
)

InputArgument = Annotated[
    Path, typer.Argument(metavar="INPUT", help="A token store of `evo prepare`, or FASTA or GenBank; `-` is stdin.")
]
SplitOption = Annotated[str, typer.Option("--split", help="What to measure on of a store: train, valid or test.")]


class Strands(StrEnum):
    """Which strands are read."""

    FORWARD = "forward"
    REVERSE = "reverse"
    BOTH = "both"


@evaluate.command()
def perplexity(
    input: InputArgument,
    model: ModelOption,
    split: SplitOption = "valid",
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Bases read at once, at most; the model's own by default.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Step from window to window; half the context by default.")
    ] = None,
    strand: Annotated[Strands, typer.Option("--strand", help="Which way to read.")] = Strands.FORWARD,
    dynamic: Annotated[
        float, typer.Option("--dynamic", metavar="LR", help="Go on learning from what was read, at this rate.")
    ] = 0.0,
    mirror: Annotated[bool, typer.Option("--mirror", help="With --dynamic, learn from the other strand too.")] = False,
    memory: Annotated[
        list[Path] | None,
        typer.Option("--memory", metavar="FILE", help="Copy from these sequences too; may be given again."),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="With --memory, learn how to copy from it, nothing from what is measured.")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the bits along the bases.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Print a model's bits per base, on a split of a store or on the records of a file, as TSV: a row a strand.

    Every A, C, G and T is predicted once, with at least context - stride bases before it; soft-masked bases count like
    others. `evo eval markov` measures on the same bases.

    With --dynamic the weights move after every window, as a compressor's counts do: a base is still predicted by what
    comes before it alone. It runs in fp32 (bf16 products over fp32 weights on a GPU); the model's file stays as it is.

    With --memory (FASTA, GenBank, or the train split of a store) a copy model stands beside the model, as in
    compressors that are given a reference: it follows stretches of the memory, and of what was read, that go on like
    the text. A small network, which learns while it reads, weighs them and the model. With --static nothing is learned
    from what is read, nor copied: the network has learned from windows that are held out of the memory, an eighth of it
    or 2 million bases. The column `static` says whether it, and the weights, stay as they are.

    \b
    Examples:
      evo eval perplexity genome.h5 --model run/model
      evo eval perplexity genome.fa --model run/model --memory relatives.fa
      evo eval perplexity genome.fa --model run/model --memory relatives.fa --static
      evo eval perplexity genome.fa --model run/model --context 8192 --strand both
      evo eval perplexity genome.fa --model run/model --dynamic 1e-3 --mirror --plot bits.png
    """
    from data.copying import hold_out
    from evo_cli.evaluation.held_out import Reading, Strand, is_store, measure, plot_bits, read_stretches, trusting
    from evo_cli.inference import load_model, precision_mark
    from evo_cli.outputs.stream import check_outputs
    from evo_cli.progress import counter

    if not 0 <= dynamic < 1:
        raise typer.BadParameter(f"must lie in 0..1, not {dynamic:g}", param_hint="--dynamic")
    if mirror and not dynamic:
        raise typer.BadParameter("goes with --dynamic", param_hint="--mirror")
    if static and not memory:
        raise typer.BadParameter(
            "goes with --memory; without it, and without --dynamic, nothing is learned anyway", param_hint="--static"
        )
    if static and dynamic:
        raise typer.BadParameter(
            "nothing is learned from what is read, so it does not go with --dynamic", param_hint="--static"
        )
    if dynamic and precision not in (Precision.AUTO, Precision.FP32):
        raise typer.BadParameter(f"--dynamic runs in fp32, not {precision}", param_hint="--precision")
    check_outputs([plot], [input, *(memory or [])])
    for path in memory or []:
        same = input.is_file() and path.is_file() and path.samefile(input)
        # other splits of a store have nothing of its train split
        if same and (split == "train" or not is_store(input)):
            raise typer.BadParameter(
                f"{path} is what is measured: a copy of it is no prediction", param_hint="--memory"
            )
    stretches = read_stretches(input, split)
    copied = tuple(stretch for path in memory or [] for stretch in read_stretches(path, "train"))
    _warn_of_copies(stretches, list(copied), "--memory")
    loaded = load_model(model, device, Precision.FP32 if dynamic else precision, backend)
    window = context or loaded.config.context
    if stride is not None and stride > window:
        raise typer.BadParameter(f"must be at most {window}, the context, not {stride}", param_hint="--stride")
    reading = Reading(context=window, stride=stride or max(1, window // 2), lr=dynamic, mirror=mirror, memory=copied)
    chosen = list(Strand) if strand is Strands.BOTH else [Strand(strand)]
    left, held = hold_out(copied) if static else ([], [])
    read = stretches * len(chosen) + held
    bases = sum(stretch.size for stretch in read)
    # a copy model reads what the model has read, and a break after each
    with counter("eval", total=2 * bases + len(read) if copied else bases) as advance:
        reading = trusting(loaded, reading, left, held, advance) if static else reading
        found = {one: measure(loaded, stretches, one, reading, advance) for one in chosen}
    if plot is not None:
        plot_bits({str(one): bits for one, bits in found.items()}, plot, title=f"{input}, {model}")
    mark = precision_mark(loaded)
    header = "model\tsplit\tstrand\tbases\tcontext\tstride\tdynamic\tmemory\tstatic\tbits_per_base"
    learns = bool(dynamic or (copied and not static))
    kept = sum(stretch.size for stretch in copied), "no" if learns else "yes"
    typer.echo(header + ("\tprecision" if mark else ""))
    for one, bits in found.items():
        cells = [model, _split(input, split), one, bits.bases, window, reading.stride, f"{dynamic:g}", *kept]
        typer.echo("\t".join(map(str, [*cells, f"{bits.per_base:.4f}", *([mark] if mark else [])])))


@evaluate.command()
def markov(
    input: InputArgument,
    order: Annotated[list[int] | None, typer.Option("--order", min=0, help="Order; may be given again.")] = None,
    split: SplitOption = "valid",
    train: Annotated[
        Path | None, typer.Option("--train", help="What to count on: a store's train split, or a FASTA file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the bits by order.")] = None,
) -> None:
    """Print the bits per base of static Markov models, as TSV.

    Counts are taken on both strands of --train (of the store itself by default), with one pseudo-count; nothing is
    learned on the way. Orders 1 to 8 if none is given.

    \b
    Examples:
      evo eval markov genome.h5 --plot orders.png
      evo eval markov genome.fa --train others.fa --order 11
    """
    from data.markov import MAX_ORDER, markov_bits_per_base
    from data.sequence import IS_BASE
    from evo_cli.evaluation.held_out import is_store, read_stretches
    from evo_cli.evaluation.markov_plot import plot_orders
    from evo_cli.outputs.stream import check_outputs

    if order and max(order) > MAX_ORDER:
        raise typer.BadParameter(f"must be 0 to {MAX_ORDER}, not {max(order)}", param_hint="--order")
    if train is None and input.exists() and not is_store(input):
        raise typer.BadParameter(f"{input} has no train split: say what to count on", param_hint="--train")
    check_outputs([plot], [input, *([train] if train else [])])
    tested = read_stretches(input, split)
    counted = read_stretches(train or input, "train")
    _warn_of_copies(tested, counted, "--train")
    bases = sum(int(IS_BASE[stretch].sum()) for stretch in tested)
    bits = {}
    typer.echo("model\tsplit\tbases\tbits_per_base")
    for one in order or range(1, 9):
        bits[one] = markov_bits_per_base(counted, tested, one)
        typer.echo(f"markov-{one}\t{_split(input, split)}\t{bases}\t{bits[one]:.4f}")
    if plot is not None:
        plot_orders(bits, plot, title=f"{input}: static Markov models of {train or 'its train split'}")


@evaluate.command()
def positions(
    input: InputArgument,
    model: ModelOption,
    split: SplitOption = "valid",
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Bases of a window; the model's own by default.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the bits by position.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Print a model's bits per base by how many bases come before, as TSV: what it makes of its context.

    Sequences are cut into windows of --context bases, each read by itself; what is left at an end is not read. A row is
    of the bases that have first to last others before them in their window; error is the standard error of the mean,
    from window to window.

    \b
    Examples:
      evo eval positions genome.fa --model run/model --plot positions.png
      evo eval positions genome.h5 --split test --model long/model --context 131072
    """
    from evo_cli.evaluation.held_out import read_stretches
    from evo_cli.evaluation.positions import by_position, plot_positions
    from evo_cli.inference import load_model, precision_mark
    from evo_cli.outputs.stream import check_outputs
    from evo_cli.progress import counter

    check_outputs([plot], [input])
    stretches = read_stretches(input, split)
    loaded = load_model(model, device, precision, backend)
    window = context or loaded.config.context
    with counter("eval", total=sum(stretch.size - stretch.size % window for stretch in stretches)) as advance:
        found = by_position(loaded, stretches, window, advance)
    if plot is not None:
        plot_positions(found, plot, title=f"{input}, {model}")
    mark = precision_mark(loaded)
    typer.echo("model\tsplit\tcontext\tfirst\tlast\tbases\tbits_per_base\terror" + ("\tprecision" if mark else ""))
    for row in found:
        cells = [model, _split(input, split), window, row.first, row.stop - 1, row.bases]
        figures = ["NA" if isnan(figure) else f"{figure:.4f}" for figure in (row.bits_per_base, row.error)]
        typer.echo("\t".join(map(str, [*cells, *figures, *([mark] if mark else [])])))


@evaluate.command()
def recall(
    model: ModelOption,
    lengths: Annotated[str, typer.Option("--lengths", help="Bases before what is asked for; commas between.")] = "1024",
    depths: Annotated[int, typer.Option("--depths", min=2, help="Depths of the needle, from 0 to 100%.")] = 5,
    needle: Annotated[int, typer.Option("--needle", min=2, help="Bases of the needle.")] = 100,
    cue: Annotated[int, typer.Option("--cue", min=1, help="Bases of it that are given at the end.")] = 32,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Needles at each length and depth.")] = 4,
    haystack: Annotated[
        str | None, typer.Option("--haystack", metavar="FASTA", help="Cut haystacks from this; random bases if none.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of needles and haystacks.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw a heat map.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Hide a needle in a haystack and ask for it at the end, as TSV: a row a length and depth.

    The needle is of random bases; the sequence ends with its first bases, the cue. accuracy is the share of the rest
    that was the likeliest of A, C, G and T (0.25 is guessing); log_prob their mean log-probability, and
    log_prob_without the same where the haystack has no needle.

    \b
    Examples:
      evo eval recall --model run/model --lengths 512,2048,8192 --plot recall.png
      evo eval recall --model run/model --lengths 8192 --haystack genome.fa --depths 9
    """
    import numpy as np

    from data.reader import read_records
    from data.sequence import to_upper_dna
    from evo_cli.evaluation.recall_plot import plot_recall
    from evo_cli.inference import load_model, precision_mark
    from evo_cli.outputs.stream import check_outputs
    from evo_cli.progress import counter
    from sh2.reading.recall import Needle
    from sh2.reading.recall import recall as measure

    try:
        chosen = list(dict.fromkeys(int(text) for text in lengths.split(",")))
    except ValueError:
        raise typer.BadParameter(
            f"must be whole numbers with commas between, not `{lengths}`", param_hint="--lengths"
        ) from None
    if cue >= needle:
        raise typer.BadParameter(f"must be at most {needle - 1}, fewer than the needle, not {cue}", param_hint="--cue")
    if min(chosen) < needle + cue:
        raise typer.BadParameter(
            f"must be at least {needle + cue}, the needle and its cue, not {min(chosen)}", param_hint="--lengths"
        )
    check_outputs([plot], [haystack])
    hidden = Needle(length=needle, cue=cue, trials=trials, seed=seed)
    bases = None
    if haystack is not None:
        text = b"".join(to_upper_dna(record.sequence) for record in read_records(haystack))
        bases = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    places = [number / (depths - 1) for number in range(depths)]
    loaded = load_model(model, device, precision, backend)
    total = trials * (depths + 1) * sum(length + needle - cue for length in chosen)
    with counter("recall", total=total) as advance:
        results = list(measure(loaded, lengths=chosen, depths=places, needle=hidden, haystack=bases, progress=advance))
    if plot is not None:
        plot_recall(results, plot, title=f"{model}: a needle of {needle}, {cue} given")
    mark = precision_mark(loaded)
    typer.echo("length\tdepth\taccuracy\tlog_prob\tlog_prob_without" + ("\tprecision" if mark else ""))
    for one in results:
        cells = [
            one.length,
            f"{one.depth:g}",
            *(f"{x:.4f}" for x in (one.accuracy, one.log_prob, one.log_prob_without)),
        ]
        typer.echo("\t".join(map(str, [*cells, *([mark] if mark else [])])))


@evaluate.command()
def generation(
    samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="FASTA, as `evo generate` writes it.")],
    reference: Annotated[
        str, typer.Option("--reference", "-r", help="FASTA or GenBank of what the samples should be like.")
    ],
    k: Annotated[int, typer.Option("--k", min=1, max=8, help="The longest k-mers to compare.")] = 6,
    piece: Annotated[int, typer.Option("--piece", min=2, help="Bases of the pieces whose GC is compared.")] = 1000,
    orf: Annotated[int, typer.Option("--orf", min=1, help="Codons of an open reading frame, at least.")] = 30,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the pieces drawn from the reference.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the comparison.")] = None,
) -> None:
    """Compare generated sequences with real ones: GC, k-mers, open reading frames, codons, as TSV.

    distance is that of the samples from the reference: the Jensen-Shannon divergence in bits for k-mers and codons, the
    Kolmogorov-Smirnov distance for GC and the lengths of reading frames. drawn and distance_drawn are the same for as
    many pieces of the reference itself, as long as the samples: samples cannot be expected to come nearer.

    \b
    Examples:
      evo generate --model run/model --prompt "" --length 20000 --samples 8 -o samples.fa
      evo eval generation samples.fa --reference genome.fa --plot samples.png
    """
    from evo_cli.evaluation.likeness import COLUMNS, compare, plot_likeness, read_texts
    from evo_cli.outputs.stream import check_outputs

    check_outputs([plot], [samples, reference])
    likeness = compare(
        read_texts(samples), read_texts(reference), largest_k=k, piece=piece, shortest_orf=orf, seed=seed
    )
    if plot is not None:
        plot_likeness(likeness, plot, title=f"{samples} and {reference}")
    typer.echo("\t".join(COLUMNS))
    for row in likeness.rows():
        typer.echo("\t".join(row))


def _warn_of_copies(measured: "list[Bases]", others: "list[Bases]", option: str) -> None:
    from evo_cli.evaluation.held_out import copies_among
    from evo_cli.inference import say

    if copies := copies_among(measured, others):
        say(f"warning: {copies:,} of {len(measured):,} measured sequences are in {option} too: no prediction of them")


def _split(input: Path, split: str) -> str:
    from evo_cli.evaluation.held_out import is_store

    return split if is_store(input) else "all"


@evaluate.command()
def variants(
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="What `evo score` wrote of variants: TSV or VCF.")],
    labels: Annotated[str, typer.Option("--labels", help="VCF, or TSV or CSV with chrom, pos, ref and alt.")],
    label: Annotated[str, typer.Option("--label", help="INFO field or column that is known of a variant.")],
    positive: Annotated[
        str | None, typer.Option("--positive", metavar="CLASSES", help="Labels that count as positive; commas between.")
    ] = None,
    higher: Annotated[
        bool, typer.Option("--higher", help="Positives should score higher; without, they are the less likely ones.")
    ] = False,
    score: Annotated[
        str,
        typer.Option("--score", help="Column or INFO field of the scores."),
    ] = "delta",
    by: Annotated[str | None, typer.Option("--by", help="Field of the labels that makes groups.")] = None,
    rounds: Annotated[int, typer.Option("--bootstrap", min=0, help="Samples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the samples.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the curves.")] = None,
) -> None:
    """Compare scores of variants with what is known of them, as TSV.

    Labels that are classes (--positive) give the area under the ROC curve and the average precision; labels that are
    numbers give Spearman's correlation. low and high hold 95% of bootstrap samples. Alleles are matched by contig,
    position, REF and ALT; what has no score or no label is left out, and counted on stderr.

    \b
    Examples:
      evo score brca1.vcf -r window.fa --model run/model -o deltas.tsv
      evo eval variants deltas.tsv --labels brca1.vcf --label CLASS --positive LOF --plot roc.png
      evo eval variants deltas.tsv --labels fitness.csv --label fitness --by consequence
    """
    from evo_cli.evaluation.labels import COLUMNS, match, measure, plot_agreement
    from evo_cli.inference import say
    from evo_cli.outputs.stream import check_outputs

    check_outputs([plot], [scores, labels])
    if higher and positive is None:
        raise typer.BadParameter("goes with --positive", param_hint="--higher")
    classes = [text.strip() for text in positive.split(",")] if positive is not None else []
    if "" in classes:
        raise typer.BadParameter(f"names an empty class: `{positive}`", param_hint="--positive")
    matched = match(scores, labels, score=score, label=label, positive=classes, by=by, higher=higher)
    # before the rows: their reader may go away (`| head`)
    for sentence in matched.omitted():
        say(sentence)
    if plot is not None:
        title = f"{scores}: {score} and {label}"
        if left := plot_agreement(matched, plot, title=title, score=score, label=label):
            say(f"{plot}: {left:,} smaller groups are not drawn")
    typer.echo("\t".join(COLUMNS))
    for row in measure(matched, rounds=rounds, seed=seed):
        typer.echo("\t".join(row))
