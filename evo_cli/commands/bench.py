"""`evo bench`: how fast this machine runs operators and models, against its own limits and other implementations."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, DeviceOption, Precision, PrecisionOption

if TYPE_CHECKING:
    from sh2.bench.cases import Case

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Time this machine, against its own limits.",
)


@bench.callback()
def main() -> None:
    """Time this machine, against its own limits."""


OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE.jsonl", help="Also write one JSON object a row.")
]
TimedModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A preset, or a model folder or file; evo2_7b on a GPU, debug on a CPU."),
]


class DtypeName(StrEnum):
    """The dtype of activations and weights."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


_GPU_DEFAULTS = {"lengths": "2048,8192,32768", "widths": "4096", "dtype": "bf16"}
_CPU_DEFAULTS = {
    "lengths": "512,2048",
    "widths": "256",
    "dtype": "fp32",
    "model": "debug",
    "contexts": "64,1024",
    "batches": "1,8",
}


@bench.command()
def ops(
    operators: Annotated[str, typer.Option("--ops", help="Operators: se, mr, li, joined by commas.")] = "se,mr,li",
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", help="Tokens, joined by commas; 2048,8192,32768 on a GPU, 512,2048 on a CPU."),
    ] = None,
    widths: Annotated[
        str | None, typer.Option("--widths", help="Channels, joined by commas; 4096 on a GPU, 256 on a CPU.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences at once.")] = 1,
    channels_per_group: Annotated[
        int, typer.Option("--channels-per-group", min=1, help="Channels that share a filter in SE and MR.")
    ] = 16,
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="auto is bf16 on a GPU, fp32 on a CPU.")] = DtypeName.AUTO,
    backend: BackendOption = BackendName.AUTO,
    forward_only: Annotated[bool, typer.Option("--forward-only", help="Leave out the backward.")] = False,
    peers: Annotated[
        str, typer.Option("--peers", help="Other implementations beside ours: all, or names joined by commas.")
    ] = "all",
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Time our operators only.")] = False,
    output: OutputOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Time the hyena operators, featurizer and gates included, and print a TSV table.

    `x_floor` is the time over that of copying what must move at the copy speed measured here: 4 tensors [batch,
    length, width] forward, 7 backward, 11 for both; `gb_per_s` is those bytes over the time; `x_ours` the time over
    our operator's. Nothing is timed before its outputs, states and gradients were checked against float64 (`error` is
    the largest relative error found): an operator of ours that fails has no figure, and the command exits with 1.

    Peers compute the same as ours (conv1d, fft, cudnn_b2b, vtx) or stand for other architectures of the same width
    (attention: sdpa_*; deltanet, gated_deltanet, gla, simple_gla, mamba2). What is not installed says so in `note`.

    \b
    Examples:
      evo bench ops | column -ts "$(printf '\\t')"
      evo bench ops --ops mr --lengths 32768 --widths 4096 --no-peers
      evo bench ops --lengths 2048,32768,1048576 -o record.jsonl
    """
    from evo_cli.bench_tables import operator_table
    from evo_cli.inference import resolve_device
    from evo_cli.outputs.stream import check_outputs

    names = _peer_names(peers, no_peers)
    check_outputs([output], [])
    where = resolve_device(device)
    defaults = _CPU_DEFAULTS if where.startswith("cpu") else _GPU_DEFAULTS
    cases = _cases(
        _operators(operators),
        _numbers(defaults["lengths"] if lengths is None else lengths, "--lengths"),
        _numbers(defaults["widths"] if widths is None else widths, "--widths"),
        batch=batch,
        channels_per_group=channels_per_group,
        dtype=defaults["dtype"] if dtype is DtypeName.AUTO else dtype,
        device=where,
    )
    _end(operator_table(cases, names, backend=backend, backward=not forward_only, output=output))


@bench.command()
def forward(
    model: TimedModel = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="Tokens, joined by commas; 8192,131072 on a GPU, 512,2048 on a CPU.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences at once.")] = 1,
    no_plain: Annotated[bool, typer.Option("--no-plain", help="Leave out the operators in plain torch.")] = False,
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
    output: OutputOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Time a model that reads, and print a TSV table.

    Timed is what `evo score` does: log-probabilities of all tokens, in pieces that carry the state, so the peak of
    memory is that of a prefill too. `x_matmul` is the arithmetic done a second (attention as it is, causal) over that
    of a large matrix product in the same dtype, measured here. Beside it runs the same model with its operators in
    plain torch; a model whose logits are far from theirs (`error`) has no figure, and the command exits with 1.

    A preset's name stands for its shape with random weights.

    \b
    Examples:
      evo bench forward --model evo2_7b --lengths 8192,131072,524288 -o forward.jsonl
      evo bench forward --model run/model --lengths 2048 --batch 8 --no-plain
    """
    from evo_cli.bench_tables import forward_table
    from evo_cli.inference import resolve_device
    from evo_cli.outputs.stream import check_outputs

    check_outputs([output], [])
    where = resolve_device(device)
    defaults = _CPU_DEFAULTS if where.startswith("cpu") else {"lengths": "8192,131072", "model": "evo2_7b"}
    failed = forward_table(
        model or defaults["model"],
        _numbers(defaults["lengths"] if lengths is None else lengths, "--lengths"),
        batch=batch,
        device=where,
        precision=precision,
        backend=backend,
        plain=not no_plain and backend is not BackendName.REFERENCE and not where.startswith("cpu"),
        output=output,
    )
    _end(failed)


@bench.command()
def generate(
    model: TimedModel = None,
    contexts: Annotated[
        str | None,
        typer.Option("--contexts", help="Tokens before, joined by commas; 1024,131072 on a GPU, 64,1024 on a CPU."),
    ] = None,
    batches: Annotated[
        str | None, typer.Option("--batches", help="Samples at once, joined by commas; 1,64 on a GPU, 1,8 on a CPU.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=8, help="Tokens that each sample writes.")] = 64,
    precision: PrecisionOption = Precision.AUTO,
    backend: BackendOption = BackendName.AUTO,
    output: OutputOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Time a model that writes, and print a TSV table.

    Samples of one random prompt are written as `evo generate` writes them, sampling included. `tokens_per_s` counts
    all samples of a batch together; `x_limit` is that over `limit_tokens_per_s`, which copying what a step must read
    (weights, states, keys and values) would allow, at the copy speed measured here. The first steps are not counted.

    A preset's name stands for its shape with random weights.

    \b
    Examples:
      evo bench generate --model evo2_7b --contexts 1024,131072 --batches 1,64 -o generate.jsonl
      evo bench generate --model evo2_1b_base --contexts 1024 --batches 1
    """
    from evo_cli.bench_tables import generate_table
    from evo_cli.inference import resolve_device
    from evo_cli.outputs.stream import check_outputs

    check_outputs([output], [])
    where = resolve_device(device)
    defaults = (
        _CPU_DEFAULTS if where.startswith("cpu") else {"contexts": "1024,131072", "batches": "1,64", "model": "evo2_7b"}
    )
    failed = generate_table(
        model or defaults["model"],
        _numbers(defaults["contexts"] if contexts is None else contexts, "--contexts"),
        _numbers(defaults["batches"] if batches is None else batches, "--batches"),
        tokens=tokens,
        device=where,
        precision=precision,
        backend=backend,
        output=output,
    )
    _end(failed)


@bench.command()
def train(
    model: Annotated[
        str | None,
        typer.Option("--preset", "--model", "-m", help="Shape of the model; 1b on a GPU, nano on a CPU."),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", help="Tokens, joined by commas; 8192,32768,131072 on a GPU, 1024 on a CPU."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Windows of a forward pass; 1 on a GPU, 8 on a CPU.")
    ] = None,
    accumulation: Annotated[int, typer.Option("--accumulation", min=1, help="Forward passes an update.")] = 1,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="By torch.compile. [yes on a GPU]", show_default=False)
    ] = None,
    recompute: Annotated[str, typer.Option("--recompute", help="none, selective, full or nested.")] = "none",
    fp8_linears: Annotated[bool, typer.Option("--fp8-linears", help="Products in FP8.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out the Transformers.")] = False,
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="auto is bf16 on a GPU, fp32 on a CPU.")] = DtypeName.AUTO,
    backend: BackendOption = BackendName.AUTO,
    output: OutputOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Time training, against the Transformer of the same size, and print a TSV table.

    Timed are whole updates as `evo train` makes them (forward, backward, clipping, AdamW; weights in fp32) of random
    bases and weights. `mfu` is the model's arithmetic (attention as it is, causal; nothing made again counted) over
    the rate of a large matrix product; `x_products` the time over that of the model's own matrix products and
    attention alone; `x_transformer` how many times as fast as with attention in every block. What runs out of
    memory says so.

    Where the package transformers is installed, its Llama of that size runs beside them, trained as its users do:
    torch.compile if --compile, autocast, fused AdamW.

    \b
    Examples:
      evo bench train --preset 1b --lengths 8192,32768,131072 -o train.jsonl
      evo bench train --preset 1b --lengths 524288 --recompute nested --alone
    """
    from evo_cli.bench_tables import train_table
    from evo_cli.inference import resolve_device
    from evo_cli.outputs.stream import check_outputs
    from sh2.bench.llama import is_installed
    from sh2.train.config import TrainConfig

    check_outputs([output], [])
    where = resolve_device(device)
    cpu = where.startswith("cpu")
    values = {
        "steps": 1,
        "batch_size": batch or (8 if cpu else 1),
        "accumulation": accumulation,
        "precision": ("fp32" if cpu else "bf16") if dtype is DtypeName.AUTO else dtype.value,
        "compile": not cpu if compile is None else compile,
        "recompute": recompute,
        "fp8_linears": fp8_linears,
        "backend": backend.value,
        "device": where,
    }
    tokens = _numbers(lengths or ("1024" if cpu else "8192,32768,131072"), "--lengths")
    config = TrainConfig.from_dict(values)
    peer = is_installed() and not (alone or fp8_linears or recompute != "none")
    shape = model or ("nano" if cpu else "1b")
    _end(train_table(shape, tokens, config, twin=not alone, peer=peer, output=output))


@bench.command()
def data(
    store: Annotated[Path, typer.Argument(metavar="STORE.h5", help="What `evo prepare` made.")],
    lengths: Annotated[
        str, typer.Option("--lengths", help="Tokens of a window, joined by commas.")
    ] = "1024,8192,131072",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows made at once.")] = 8,
    output: OutputOption = None,
) -> None:
    """Time the making of training windows by one worker, as `evo train` has it, and print a TSV table.

    Example: evo bench data store.h5
    """
    from evo_cli.bench_tables import data_table
    from evo_cli.outputs.stream import check_outputs

    check_outputs([output], [store])
    _end(data_table(store, _numbers(lengths, "--lengths"), batch=batch, output=output))


def _end(failed: int) -> None:
    """Exit with 1 if rows of ours have no figure."""
    if failed:
        from evo_cli.inference import say

        typer.secho(f"error: {failed} of our rows failed the check and have no figure", fg="red", err=True)
        say("hint: `note` says what was wrong; `--backend reference` runs plain PyTorch")
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> list[int]:
    """Read `2048,8192`."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"`{text}`: give whole numbers above 0, joined by commas, as in 2048,8192", param_hint=option
        )
    return [int(part) for part in parts]


def _operators(text: str) -> list[str]:
    known = ("se", "mr", "li")
    names = [name.strip().lower().removeprefix("hyena_") for name in text.split(",")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"unknown operator `{name}`; known: {', '.join(known)}, joined by commas", param_hint="--ops"
            )
    return names


def _peer_names(text: str, none: bool) -> list[str]:
    from sh2.bench.peers import PEERS

    known = [peer.name for peer in PEERS]
    if none and text != "all":
        raise typer.BadParameter("give either --peers or --no-peers", param_hint="--peers")
    if none or text == "all":
        return [] if none else known
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"unknown peer `{name}`; known: all, {', '.join(known)}", param_hint="--peers")
    return names


def _cases(
    operators: list[str],
    lengths: list[int],
    widths: list[int],
    *,
    batch: int,
    channels_per_group: int,
    dtype: str,
    device: str,
) -> "list[Case]":
    from sh2.bench.cases import Case, Dtype, Operator

    for width in widths:
        if width % channels_per_group:
            raise typer.BadParameter(
                f"a width of {width} is no whole number of groups of {channels_per_group} channels: "
                "change --widths or --channels-per-group",
                param_hint="--widths",
            )
    return [
        Case(
            op=Operator(f"hyena_{name}"),
            batch=batch,
            length=length,
            width=width,
            channels_per_group=channels_per_group,
            dtype=Dtype(dtype),
            device=device,
        )
        for name in operators
        for width in widths
        for length in sorted(lengths)
    ]
