"""`evo selftest`: whether a model computes what it should on this machine."""

from typing import Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, DeviceOption, ModelOption, Precision, PrecisionOption


def selftest(
    model: ModelOption,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FASTA", help="The prompts that a published model's values belong to."),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Check a model on this machine, in this precision: a TSV table of checks, values, what is allowed, pass or fail.

    \b
    finite          part of the logits that are no numbers
    pieces          a sequence in pieces of 1, 2, 3, 127, ... tokens, against one pass
    steps           token by token, against one pass
    forks           three rows that continue one state, against each alone
    kernels         Triton kernels against plain torch
    rounding        bf16 against the same weights in fp32
    fp8             whether FP8 projections are in effect, for a model that was trained with them
    bits_per_base   of 1,500 bases of the phage phiX174 (NC_001422.1); guessing is 2
    accuracy        next bases guessed right
    strands         bits a base between that and its reverse complement
    published_loss, published_accuracy
                    the published values, over the prompts of the package evo2's own test, given by --prompts

    The first six are relative differences of the logits. Exits with 1 if a check fails; `note` has the likely cause.

    \b
    Examples:
      evo selftest --model run/model
      evo selftest --model evo2_1b_base --precision fp8-emulated --prompts prompts.fa
    """
    from pathlib import Path

    from data.known import PHIX174
    from data.reader import read_records
    from data.sequence import reverse_complement, to_upper_dna
    from evo_cli.inference import load_model, say
    from evo_cli.selftest_table import LEAST_PROMPT, cells
    from sh2.errors import Sh2Error
    from sh2.reading.selftest import selftest as run

    records = list(read_records(prompts)) if prompts else []
    for record in records:
        if len(record.sequence) < LEAST_PROMPT:
            text = f"{prompts}: record `{record.name}` has {len(record.sequence)} bases: too few to predict"
            raise Sh2Error(text).hint(f"give prompts of {LEAST_PROMPT} bases or more")
    loaded = load_model(model, device, precision, backend)
    typer.echo("check\tvalue\tallowed\tresult\tnote")
    failed, ran = 0, 0
    for check in run(
        loaded,
        PHIX174,
        reverse_complement(PHIX174),
        name=Path(model).stem,
        prompts=[to_upper_dna(record.sequence) for record in records],
    ):
        typer.echo("\t".join(cells(check)))
        failed += check.passed is False
        ran += check.passed is not None
    if failed:
        typer.secho(f"error: {failed} of {ran} checks failed", fg="red", err=True)
        say("hint: `note` has the likely cause")
        raise typer.Exit(1)
    say(f"{ran} checks passed")
