"""`evo finetune`: from labelled sequences to a head on a model, and to a model trained with it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo_cli.inference import (
    BackendName,
    BackendOption,
    DeviceOption,
    MaxTokensOption,
    ModelOption,
    Precision,
    PrecisionOption,
)


class TaskName(StrEnum):
    """What labels are."""

    AUTO = "auto"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class TrainedName(StrEnum):
    """What is trained."""

    HEAD = "head"
    ADAPTERS = "adapters"
    ALL = "all"


class PoolingName(StrEnum):
    """What becomes of a sequence's bases."""

    MEAN = "mean"
    LAST = "last"
    MAX = "max"


def finetune(
    model: ModelOption,
    input: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="Table of sequence and label; or, with --labels, FASTA."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder to write.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Table with the columns name and label, of the records of INPUT.")
    ] = None,
    task: Annotated[TaskName, typer.Option("--task", help="What labels are; auto looks at them.")] = TaskName.AUTO,
    train: Annotated[
        TrainedName, typer.Option("--train", help="The head alone; adapters in the model too; or all weights.")
    ] = TrainedName.HEAD,
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Number of the block that the head reads, or norm.  [default: at three quarters]"),
    ] = None,
    pool: Annotated[PoolingName, typer.Option("--pool", help="What becomes of the bases.")] = PoolingName.MEAN,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="With --train: times that all examples are seen.")] = 5,
    lr: Annotated[float, typer.Option("--lr", help="With --train: highest learning rate.")] = 1e-4,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="With --train: sequences an update.")] = 16,
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=1, help="Rank of adapters.")] = 8,
    lora_alpha: Annotated[float, typer.Option("--lora-alpha", help="Scales their products, over rank.")] = 16.0,
    valid: Annotated[
        float, typer.Option("--valid", min=0, max=1, help="Share for validation, where no column says it.")
    ] = 0.1,
    test: Annotated[float, typer.Option("--test", min=0, max=1, help="Share for test, where no column says it.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides shares and the order of examples.")] = 0,
    recompute: Annotated[
        str, typer.Option("--recompute", help="With --train: none, selective, full or nested, as in `evo train`.")
    ] = "none",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in RUN.")] = False,
    max_tokens: MaxTokensOption = 65536,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Teach a model a property of sequences from labelled ones: a class or a number. Prints how well that went.

    The head is one linear layer on the pooled output of a block; it is fitted exactly, with the penalty that validation
    prefers. With --train adapters or all, the model is then trained with it, and the best epoch is kept.

    INPUT is a table (tab or comma, plain or gzip) with the columns sequence and label and, if you like, name and split
    (train, valid, test); without a header, a sequence and a label a line. Where no column says it, parts are chosen by
    a hash of the sequence: copies and reverse complements are never in two of them.

    \b
    RUN/head.safetensors     what `evo predict` needs, beside the model
    RUN/model                the trained model, a plain one; with adapters, these alone in RUN/adapter.safetensors
    RUN/metrics.tsv          accuracy and AUROC, or Spearman and R2, with 95% intervals; also on stdout

    \b
    Examples:
      evo finetune promoters.tsv --model run/model -o promoters/
      evo finetune seqs.fa --labels activity.tsv --model evo2_7b --train adapters --epochs 3 -o activity/
      evo predict new.fa --head promoters/ -o predictions.tsv
    """
    from evo_cli.finetuning.metrics import COLUMNS
    from evo_cli.finetuning.run import FinetuneRequest, Place, Trained, run_finetune
    from sh2.config import Lora
    from sh2.heads import Task

    request = FinetuneRequest(
        sequences=input,
        labels=labels,
        output=output,
        task=None if task is TaskName.AUTO else Task(task.value),
        layer=layer,
        pooling=pool,
        trained=Trained(train.value),
        lora=Lora(rank=lora_rank, alpha=lora_alpha),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        valid=valid,
        test=test,
        seed=seed,
        max_tokens=max_tokens,
        recompute=recompute,
        overwrite=overwrite,
    )
    measures = run_finetune(request, Place(model=model, device=device, precision=precision, backend=backend))
    typer.echo("\t".join(COLUMNS))
    for one in measures:
        typer.echo("\t".join(one.row()))
