"""The tables of `evo bench`: rows on stdout as they come, and as JSON with the machine that they were measured on."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from time import perf_counter

import typer

from data.store import Split, TokenStore
from data.windows import WindowOptions, Windows
from evo_cli.inference import Precision, say
from evo_cli.model_choice import model_config, model_to_time
from evo_cli.outputs.stream import open_output
from evo_cli.progress import counter
from sh2.bench.cases import Case
from sh2.bench.forward import ForwardBench
from sh2.bench.generate import GenerateBench
from sh2.bench.run import Bench, machine
from sh2.bench.timing import Ceilings
from sh2.bench.train import TrainBench
from sh2.train.config import TrainConfig
from sh2.train.loader import Loader

_DATA_SECONDS = 3.0  # of a row

Cells = Mapping[str, str | int | float | None]


def operator_table(cases: list[Case], peers: list[str], *, backend: str, backward: bool, output: Path | None) -> int:
    """Time operators and peers; return how many of our rows failed."""
    device = cases[0].device
    table = Bench(device=device, backend=backend, peers=peers, backward=backward)
    common = _common(device, backend, table.ceilings, "bf16")
    rows = ((row.values(), row.failed) for row in table.rows(cases))
    return _write(rows, total=table.count(cases), common=common, output=output)


def forward_table(
    name: str,
    lengths: Sequence[int],
    *,
    batch: int,
    device: str,
    precision: Precision,
    backend: str,
    plain: bool,
    output: Path | None,
) -> int:
    """Time a model over sequences of these lengths; return how many rows failed."""
    model, numbers = model_to_time(name, device, precision, backend)
    bench = ForwardBench(model, batch=batch, backend=backend, plain=plain)
    what = {"model": name, "precision": numbers.name}
    common = _common(device, backend, bench.ceilings, numbers.dtype)
    rows = ((what | (row := asdict(bench.row(length))), bool(row["failed"])) for length in lengths)
    return _write(rows, total=len(lengths), common=common, output=output)


def generate_table(
    name: str,
    contexts: Sequence[int],
    batches: Sequence[int],
    *,
    tokens: int,
    device: str,
    precision: Precision,
    backend: str,
    output: Path | None,
) -> int:
    """Time a model that writes batches after contexts; return how many rows failed."""
    model, numbers = model_to_time(name, device, precision, backend)
    bench = GenerateBench(model, numbers, tokens=tokens)
    what = {"model": name, "precision": numbers.name}
    common = _common(device, backend, bench.ceilings, numbers.dtype) | {"tokens": tokens}
    sizes = [(context, batch) for context in contexts for batch in batches]
    rows = ((what | (row := asdict(bench.row(*size))), bool(row["failed"])) for size in sizes)
    return _write(rows, total=len(sizes), common=common, output=output)


def train_table(
    name: str, lengths: Sequence[int], config: TrainConfig, *, twin: bool, peer: bool, output: Path | None
) -> int:
    """Time updates of a model, of its Transformer, and of a Llama; return how many rows failed."""
    shape, _ = model_config(name)
    bench = TrainBench(config)
    settings = {"precision": config.precision, "compile": config.compile, "recompute": config.recompute}
    common = _common(config.device, config.backend, bench.ceilings, config.precision)
    common |= {"fp8_linears": config.fp8_linears, "accumulation": config.accumulation}
    rows = (
        ({"model": row["model"]} | settings | row, bool(row["failed"]))
        for row in map(asdict, bench.rows(name, shape, list(lengths), twin=twin, peer=peer))
    )
    return _write(rows, total=len(lengths) * (1 + twin + peer), common=common, output=output)


def data_table(path: Path, lengths: Sequence[int], *, batch: int, output: Path | None) -> int:
    """Time the making of windows of a store by one worker."""
    common = {"machine": machine("cpu"), "command": shlex.join(["evo", *sys.argv[1:]]), "store": str(path)}
    with TokenStore(path) as store:
        rows = ((asdict(_data_row(store, length, batch)), False) for length in lengths)
        return _write(rows, total=len(lengths), common=common, output=output)


@dataclass(frozen=True, kw_only=True)
class _DataRow:
    length: int
    batch: int
    windows: int  # made in all
    seconds: float
    tokens_per_s: float
    mb_per_s: float  # of tokens: a byte each


def _data_row(store: TokenStore, length: int, batch: int) -> _DataRow:
    """Let a loader make windows in their training order, and do nothing with them."""
    source = Windows(store, Split.TRAIN, WindowOptions(length=length))
    made = 0
    with Loader(source, ((number * batch, batch) for number in count()), pinned=False) as loader:
        loader.next()  # the first lays out the epoch
        began = perf_counter()
        while (seconds := perf_counter() - began) < _DATA_SECONDS:
            loader.next()
            made += batch
    rate = made * length / seconds
    return _DataRow(length=length, batch=batch, windows=made, seconds=seconds, tokens_per_s=rate, mb_per_s=rate / 1e6)


def _common(device: str, backend: str, limits: Ceilings, dtype: str) -> dict[str, object]:
    """What all rows of a table share; and a line of talk about the machine."""
    found = machine(device)
    tflops = limits.matmul_flops_per_second / 1e12
    say(
        f"{found.get('gpu', 'cpu')}: copies {limits.copy_bytes_per_second / 1e9:,.0f} GB/s (read and written), "
        f"multiplies {dtype} matrices at {tflops:,.{1 if tflops >= 1 else 3}f} TFLOP/s"
    )
    return {
        "backend": str(backend),
        "machine": found,
        "ceilings": asdict(limits),
        "command": shlex.join(["evo", *sys.argv[1:]]),
    }


def _write(rows: Iterable[tuple[Cells, bool]], *, total: int, common: Mapping[str, object], output: Path | None) -> int:
    """Print a table as it grows, and write it; return how many rows failed."""
    failed = 0
    with (
        open_output(output) if output else nullcontext() as stream,
        counter("bench", total=total, unit="rows") as advance,
    ):
        for number, (values, wrong) in enumerate(rows):
            shown = {name: value for name, value in values.items() if name != "failed"}
            if number == 0:
                typer.echo("\t".join(shown))
            typer.echo("\t".join(_cell(value) for value in shown.values()))
            if stream:
                stream.write(json.dumps({**shown, "failed": wrong, **common}) + "\n")
                stream.flush()
            failed += wrong
            advance(1)
    return failed


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
