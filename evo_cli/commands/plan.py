"""`evo plan`: memory and time of a task before it is started."""

from enum import StrEnum
from typing import Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, KVDtype, KVDtypeOption, Precision, PrecisionOption


class TaskName(StrEnum):
    """What is done with a model."""

    SCORE = "score"
    EMBED = "embed"
    GENERATE = "generate"
    TRAIN = "train"


def plan(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A preset, or a model folder or file. Weights are not read.")
    ],
    length: Annotated[
        int, typer.Option("--length", "-L", min=1, help="Tokens of a sequence; in training, of a window.")
    ],
    task: Annotated[TaskName, typer.Option("--task", help="What is done with them.")] = TaskName.SCORE,
    batch: Annotated[
        int,
        typer.Option("--batch", "-B", min=1, help="Sequences at once, or samples, or windows of an update."),
    ] = 1,
    prompt: Annotated[
        int | None,
        typer.Option("--prompt", min=1, help="Of the tokens of generate, how many are given; 1 if left out."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            help="auto, cpu, cuda, cuda:N; or h100 or h200, which need not be here. cuda:0+cuda:1, h100+h100: one"
            " model over both. cuda:0+cpu, h100+cpu: what does not fit the GPU is streamed to it.",
        ),
    ] = "auto",
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GIB", help="Plan for so much memory, not for what is there.")
    ] = None,
    kv_dtype: KVDtypeOption = KVDtype.AUTO,
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
) -> None:
    """Predict the memory and the time of a task, and the longest sequence that fits, as TSV.

    Memory is counted from the shapes, at its worst moment: weights, the states of the filters, keys and values, what a
    piece of a sequence takes while it passes, and what the GPU's libraries take. Time is that of one batch, from trying
    a block of each kind here, which takes some seconds; or, for a device that is not here, from its measured limits.

    Of a model that is split over devices, memory is told of each. Exits with 1 if it does not fit.

    \b
    Examples:
      evo plan --model evo2_7b --length 1048576 --device h100
      evo plan --model evo2_7b --length 131072 --task generate --prompt 130000 --batch 8
      evo plan --model evo2_40b --length 131072 --device h100+h100
      evo plan --model evo2_40b --length 8192 --device h100 --precision fp8-weights
      evo plan --model nano --length 8192 --task train --batch 8
    """
    if prompt is not None and task is not TaskName.GENERATE:
        raise typer.BadParameter("is for --task generate", param_hint="--prompt")
    if task is TaskName.GENERATE and (prompt or 1) >= length:
        raise typer.BadParameter(f"must be below --length {length}: nothing would be written", param_hint="--prompt")
    if memory is not None and not 0 < memory < 1e9:
        raise typer.BadParameter(f"must be above 0, not {memory:g}", param_hint="--memory")
    if task is TaskName.TRAIN and precision not in (Precision.AUTO, Precision.BF16, Precision.FP32):
        raise typer.BadParameter("training runs in bf16 or fp32", param_hint="--precision")
    from evo_cli.planning import Request, predict, print_answer
    from evo_cli.split_planning import predict_split

    answer = (predict_split if "+" in device else predict)(
        Request(
            model=model,
            length=length,
            task=task.value,
            batch=batch,
            prompt=prompt or 1,
            device=device,
            memory=None if memory is None else int(memory * 2**30),
            kv_dtype=None if kv_dtype is KVDtype.AUTO else kv_dtype.value,
            precision=precision,
            backend=backend,
        )
    )
    print_answer(*answer)
