"""`evo predict`: what a head that `evo finetune` trained says of other sequences."""

from pathlib import Path
from typing import Annotated

import typer

from evo_cli.inference import (
    BackendName,
    BackendOption,
    DeviceOption,
    MaxTokensOption,
    OverwriteOption,
    Precision,
    PrecisionOption,
)


def predict(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="FASTA or GenBank, plain or gzip; `-` is stdin.")],
    head: Annotated[Path, typer.Option("--head", metavar="RUN", help="Folder that `evo finetune` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .tsv, .tsv.gz or .parquet.  [default: stdout]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model that the head reads.  [default: that of RUN]"),
    ] = None,
    overwrite: OverwriteOption = False,
    max_tokens: MaxTokensOption = 65536,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Predict the class or the number of every record, as `evo finetune` learned it from labelled ones.

    A row a record: its name and length, the prediction and, of classes, the probability of each. A file survives being
    killed: the same command goes on.

    \b
    Examples:
      evo predict new.fa --head promoters/ -o predictions.tsv
      zcat genes.fa.gz | evo predict - --head activity/ | sort -t"$(printf '\\t')" -k3,3gr | head
    """
    from evo_cli.finetuning.predict import PredictRequest, model_of, run_predict
    from evo_cli.finetuning.run import Place

    request = PredictRequest(sequences=input, run=head, output=output, max_tokens=max_tokens, overwrite=overwrite)
    place = Place(model=model_of(head, model), device=device, precision=precision, backend=backend)
    run_predict(request, place)
