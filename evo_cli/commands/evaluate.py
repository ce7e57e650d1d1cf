"""`evo eval`: how well a model predicts held-out DNA, and the baselines it has to beat."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, DeviceOption, ModelOption, Precision, PrecisionOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data.store import TokenStore

evaluate = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a model on held-out DNA, and the baselines it has to beat.",
)

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE.h5", help="A token store of `evo prepare`.")]
SplitOption = Annotated[str, typer.Option("--split", help="What to measure on: train, valid or test.")]


@evaluate.command()
def perplexity(
    store: StoreArgument,
    model: ModelOption,
    split: SplitOption = "valid",
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Bases read at once, at most; the model's own by default.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Step from window to window; half the context by default.")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Print a model's bits per base on a split of a store, as TSV.

    Every A, C, G and T of the split is predicted once, with at least context - stride bases before it; soft-masked
    bases count like others. `evo eval markov` measures on the same bases.

    \b
    Examples:
      evo eval perplexity genome.h5 --model run/model
      evo eval perplexity genome.h5 --model run/model --split test --context 8192
    """
    import math

    import numpy as np

    from data.sequence import IS_BASE, to_upper_dna
    from data.store import TokenStore
    from evo_cli.inference import load_model, precision_mark
    from evo_cli.progress import progress_bar
    from sh2.perplexity import sliding_log_probs

    with TokenStore(store) as opened:
        stretches = list(_stretches(opened, split))
        _check_bases(opened, split, stretches)
        loaded = load_model(model, device, precision, backend)
        window = context or loaded.config.context
        step = stride or max(1, window // 2)
        total, bases, read = 0.0, 0, 0
        with progress_bar("eval", total=sum(stretch.size for stretch in stretches)) as bar:
            for stretch in stretches:
                log_probs = sliding_log_probs(loaded, to_upper_dna(stretch), context=window, stride=step)
                counted = IS_BASE[stretch]
                total += float(log_probs[counted].sum(dtype=np.float64))
                bases += int(counted.sum())
                read += stretch.size
                bar.update(read)
    mark = precision_mark(loaded)
    typer.echo("model\tsplit\tbases\tcontext\tstride\tbits_per_base" + ("\tprecision" if mark else ""))
    cells = [model, split, bases, window, step, f"{-total / bases / math.log(2):.4f}", *([mark] if mark else [])]
    typer.echo("\t".join(map(str, cells)))


@evaluate.command()
def markov(
    store: StoreArgument,
    order: Annotated[list[int] | None, typer.Option("--order", min=0, help="Order; may be given again.")] = None,
    split: SplitOption = "valid",
) -> None:
    """Print the bits per base of static Markov models on a split of a store, as TSV.

    Counts are taken on both strands of the train split, with one pseudo-count; nothing is learned on the way. Orders
    1 to 8 if none is given.

    \b
    Examples:
      evo eval markov genome.h5
      evo eval markov genome.h5 --order 3 --split test
    """
    from data.markov import MAX_ORDER, markov_bits_per_base
    from data.store import TokenStore

    with TokenStore(store) as opened:
        tested = list(_stretches(opened, split))
        bases = _check_bases(opened, split, tested)
        if order and max(order) > MAX_ORDER:
            raise typer.BadParameter(f"must be 0 to {MAX_ORDER}, not {max(order)}", param_hint="--order")
        typer.echo("model\tsplit\tbases\tbits_per_base")
        for one in order or range(1, 9):
            bits = markov_bits_per_base(_stretches(opened, "train"), tested, one)
            typer.echo(f"markov-{one}\t{split}\t{bases}\t{bits:.4f}")


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
    score: Annotated[str, typer.Option("--score", help="Column or INFO field of the scores.")] = "delta",
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
    from evo_cli.inference import say
    from evo_cli.label_agreement import COLUMNS, match, measure, plot_agreement
    from evo_cli.output import check_outputs

    check_outputs([plot], [scores, labels])
    classes = [text.strip() for text in positive.split(",")] if positive is not None else []
    if "" in classes:
        raise typer.BadParameter(f"names an empty class: `{positive}`", param_hint="--positive")
    matched = match(scores, labels, score=score, label=label, positive=classes, by=by, higher=higher)
    # before the rows: their reader may go away (`| head`)
    if plot is not None:
        plot_agreement(matched, plot, title=f"{scores}: {score} and {label}", score=score, label=label)
    typer.echo("\t".join(COLUMNS))
    for row in measure(matched, rounds=rounds, seed=seed):
        typer.echo("\t".join(row))
    if matched.unscored:
        say(f"{matched.unscored:,} labelled alleles have no score")


def _stretches(store: "TokenStore", split: str) -> "Iterator[NDArray[np.uint8]]":
    """The bases of a split, one contiguous stretch of a record at a time.

    Raises:
        DataError: there is no such split, or nothing in it.
    """
    from data.errors import DataError
    from data.store import Split

    if split not in list(Split):
        raise DataError(f"unknown split `{split}`").hint(f"known splits: {', '.join(Split)}")
    segments = store.segments(split)
    if not len(segments):
        raise DataError(f"{store.path}: the {split} split is empty").hint("prepare the store with a larger fraction")
    for segment in segments:
        yield store.read(int(segment["start"]), int(segment["end"]))


def _check_bases(store: "TokenStore", split: str, stretches: "list[NDArray[np.uint8]]") -> int:
    """Count the A, C, G and T of a split.

    Raises:
        DataError: there are none.
    """
    from data.errors import DataError
    from data.sequence import IS_BASE

    bases = sum(int(IS_BASE[stretch].sum()) for stretch in stretches)
    if not bases:
        raise DataError(f"{store.path}: the {split} split holds no A, C, G or T").hint(
            "prepare the store with a larger fraction, or from other sequences"
        )
    return bases
