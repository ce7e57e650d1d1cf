"""What `evo plan` asks and answers: devices, numbers and words around `sh2.planning.plan`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import typer

from evo_cli.inference import BackendName, Precision, memory_bytes, resolve_device, say
from evo_cli.model_choice import model_config, numbers_of
from evo_cli.progress import duration
from sh2.config import ModelConfig
from sh2.errors import Sh2Error
from sh2.planning.accounting import Numbers, count_parameters
from sh2.planning.plan import Duration, Plan, Task, fits, longest, predict_memory, predict_seconds, total_flops
from sh2.planning.speeds import KNOWN_DEVICES, KnownDevice, Speeds, Trial, speeds_of

_GIB = 2**30

Line = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line. memory: in bytes; None is the device's own."""

    model: str
    length: int
    task: str
    batch: int
    prompt: int
    device: str
    memory: int | None
    kv_dtype: str | None
    precision: Precision
    backend: BackendName


def predict(request: Request) -> tuple[list[Line], str | None]:
    """Answer a request: lines of the table, and why the task does not fit, if it does not.

    Raises:
        Sh2Error: the model or the device is not known, or the precision is not one it has.
    """
    config, stored = model_config(request.model)
    elsewhere = KNOWN_DEVICES.get(request.device)
    where = request.device if elsewhere else resolve_device(request.device)
    gpu = elsewhere is not None or where.startswith("cuda")
    numbers = numbers_for(request, config, stored, where, elsewhere)
    plan = Plan(
        config=config,
        task=Task(request.task),
        length=request.length,
        batch=request.batch,
        prompt=request.prompt,
        numbers=numbers,
        kv_dtype=request.kv_dtype,
        room=request.memory or (elsewhere.memory_bytes if elsewhere else memory_bytes(where)),
        gpu=gpu,
    )
    say(described(request.model, plan, elsewhere.name if elsewhere else where))
    return answer(plan, where, elsewhere, request.backend)


def described(name: str, plan: Plan, where: str) -> str:
    """One line about what is planned."""
    numbers = plan.numbers
    return (
        f"{name}: {count_parameters(plan.config) / 1e6:,.1f}M parameters, in {numbers.projections or numbers.dtype}"
        f"{f' and {numbers.dtype}' if numbers.projections else ''}"
        f"{', weights kept in FP8' if numbers.fp8_weights else ''}, on {where}"
    )


def answer(
    plan: Plan, where: str, elsewhere: KnownDevice | None, backend: BackendName
) -> tuple[list[Line], str | None]:
    """Lines of the table, and why the task does not fit, if it does not.

    Args:
        where: the device that is here, if it is not `elsewhere`.
    """
    lines = list(_memory_lines(plan))
    if not fits(plan):
        return lines, _why_not(plan)
    speeds = speeds_for(plan, where, elsewhere, backend)
    return lines + list(time_lines(plan, predict_seconds(plan, speeds) if speeds else None)), None


def print_answer(lines: list[Line], short: str | None) -> None:
    """Print a table, and on stderr why the task does not fit; the command then exits with 1."""
    typer.echo("quantity\tvalue\tunit")
    for line in lines:
        typer.echo("\t".join(line))
    if short:
        typer.secho(f"error: {short}", fg="red", err=True)
        raise typer.Exit(1)


def numbers_for(
    request: Request, config: ModelConfig, stored: str, where: str, elsewhere: KnownDevice | None
) -> Numbers:
    gpu, plain = elsewhere is not None or where.startswith("cuda"), request.backend is BackendName.REFERENCE
    if request.task == Task.TRAIN:
        auto = "bf16" if gpu else "fp32"
        return Numbers(
            dtype=auto if request.precision is Precision.AUTO else request.precision.value, fused=gpu and not plain
        )
    lacks = False
    if elsewhere is None:
        import torch

        from sh2.fp8 import fp8_lacks

        lacks = fp8_lacks(torch.device(where), config.width) is not None
    return numbers_of(config, stored, request.precision, gpu=gpu, lacks_fp8=lacks, plain=plain)


def speeds_for(plan: Plan, where: str, elsewhere: KnownDevice | None, backend: BackendName) -> Speeds | None:
    training, rows = plan.task is Task.TRAIN, plan.batch if plan.task is Task.GENERATE else 0
    if elsewhere is not None:
        if plan.numbers.dtype != "bf16":
            say(f"no time: what a {elsewhere.name} does in {plan.numbers.dtype} was not measured")
            return None
        say(f"time: {elsewhere.source}")
        adapted = plan.lora is not None
        return speeds_of(elsewhere, plan.config, plan.numbers, rows=rows, training=training, adapted=adapted)
    say("time: a block of each kind is tried here")
    read = plan.prompt if plan.task is Task.GENERATE else plan.length
    tokens = min(read, read if training else plan.chunk) * (1 if plan.task is Task.GENERATE else plan.batch)
    trial = Trial(
        plan.config,
        plan.numbers,
        device=where,
        backend=backend,
        tokens=tokens,
        rows=rows,
        training=training,
        lora=plan.lora,
        streamed=plan.streamed > 0,
    )
    return trial.run()


def _memory_lines(plan: Plan) -> Iterator[Line]:
    memory = predict_memory(plan)
    for field in fields(memory):
        if value := getattr(memory, field.name):
            yield field.name, gib(value), "GiB"
    yield "total", gib(memory.total), "GiB"
    yield "room", gib(plan.room), "GiB"
    yield "fits", "yes" if fits(plan) else "no", ""
    yield "longest", str(longest(plan)), "tokens"
    if plan.task is not Task.TRAIN:
        yield "chunk", str(plan.chunk), "tokens"
    yield "arithmetic", f"{total_flops(plan) / 1e12:.4g}", "TFLOP"


def time_lines(plan: Plan, took: Duration | None) -> Iterator[Line]:
    if took is None:
        return
    if plan.task is Task.GENERATE:
        written = plan.batch * (plan.length - plan.prompt)
        yield "prefill", f"{took.reading:.4g}", "s"
        yield "decoding", f"{took.writing:.4g}", "s"
        yield "decoding_speed", f"{written / took.writing:.4g}", "tokens/s"
    yield "time", f"{took.total:.4g}", "s"
    if plan.task is not Task.GENERATE:
        yield "speed", f"{plan.accumulation * plan.batch * plan.length / took.total:.4g}", "tokens/s"
    say(f"one {'update' if plan.task is Task.TRAIN else 'batch'} takes {duration(took.total)}")


def _why_not(plan: Plan) -> str:
    """One sentence, with the way out."""
    need, room = (f"{value / _GIB:,.1f} GiB" for value in (predict_memory(plan).total, plan.room))
    most = longest(plan)
    error = Sh2Error(f"{plan.task} of {plan.length:,} tokens, {plan.batch} at once, takes {need} of {room}")
    return f"{error}; {f'{most:,} tokens would fit' if most else 'no length fits'}"


def gib(value: int) -> str:
    return f"{value / _GIB:.3f}"
