"""`evo bench`: how fast this machine runs the operators, against its own limits and against other implementations."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evo_cli.inference import BackendName, BackendOption, DeviceOption

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


class DtypeName(StrEnum):
    """The dtype of activations and weights."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


_GPU_DEFAULTS = {"lengths": "2048,8192,32768", "widths": "4096", "dtype": "bf16"}
_CPU_DEFAULTS = {"lengths": "512,2048", "widths": "256", "dtype": "fp32"}


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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.jsonl", help="Also write one JSON object a row.")
    ] = None,
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
    from evo_cli.inference import resolve_device, say
    from evo_cli.output import check_outputs

    names = _peer_names(peers, no_peers)
    check_outputs([output], [])
    where = resolve_device(device)
    defaults = _CPU_DEFAULTS if where == "cpu" else _GPU_DEFAULTS
    cases = _cases(
        _operators(operators),
        _numbers(defaults["lengths"] if lengths is None else lengths, "--lengths"),
        _numbers(defaults["widths"] if widths is None else widths, "--widths"),
        batch=batch,
        channels_per_group=channels_per_group,
        dtype=defaults["dtype"] if dtype is DtypeName.AUTO else dtype,
        device=where,
    )
    failed = _run(cases, names, backend=backend, backward=not forward_only, output=output)
    if failed:
        typer.secho(f"error: {failed} of our rows failed the check and have no figure", fg="red", err=True)
        say("hint: `note` says what was wrong; `--backend reference` runs plain PyTorch")
        raise typer.Exit(1)


def _run(cases: "list[Case]", peers: list[str], *, backend: str, backward: bool, output: Path | None) -> int:
    """Print the table as it grows, and write it; return how many of our rows failed."""
    import json
    import shlex
    import sys
    from contextlib import nullcontext
    from dataclasses import asdict

    from evo_cli.inference import say
    from evo_cli.output import open_output
    from evo_cli.progress import counter
    from sh2.bench.run import Bench, machine

    device = cases[0].device
    table = Bench(device=device, backend=backend, peers=peers, backward=backward)
    found = machine(device)
    limits = table.ceilings
    say(
        f"{found.get('gpu', 'cpu')}: copies {limits.copy_bytes_per_second / 1e9:,.0f} GB/s (read and written), "
        f"multiplies bf16 matrices at {limits.matmul_flops_per_second / 1e12:,.1f} TFLOP/s"
    )
    common = {"backend": str(backend), "machine": found, "ceilings": asdict(limits)}
    common["command"] = shlex.join(["evo", *sys.argv[1:]])
    failed = 0
    with (
        open_output(output) if output else nullcontext() as stream,
        counter("bench", total=table.count(cases), unit="rows") as advance,
    ):
        for number, row in enumerate(table.rows(cases)):
            if number == 0:
                typer.echo("\t".join(row.values()))
            typer.echo("\t".join(_cell(value) for value in row.values().values()))
            if stream:
                stream.write(json.dumps({**row.values(), "failed": row.failed, **common}) + "\n")
            failed += row.failed
            advance(1)
    return failed


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


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
