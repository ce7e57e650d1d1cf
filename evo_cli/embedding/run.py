"""`evo embed` from a request to its file: what is checked before the model is loaded, what is written after it ran."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from data.bed import BedInterval, read_bed
from data.reader import read_records
from evo_cli.embedding.blocks import Block, EmbedOptions, Tally, blocks, embed_block
from evo_cli.embedding.files import Contents, Format, Stream, format_of, write_embeddings
from evo_cli.embedding.parts import count_blocks, is_done, read_blocks
from evo_cli.inference import BackendName, KVDtype, Precision, kv_option, mark_of, open_replicas, say, warn
from evo_cli.outputs.metadata import Run, describe_run
from evo_cli.outputs.run_folder import RunFolder
from evo_cli.outputs.stream import check_outputs
from evo_cli.progress import counter
from sh2.reading.sites import Pooling, Tap, find_sites, sites

if TYPE_CHECKING:
    from sh2.config import ModelConfig
    from sh2.devices.replicas import Replicas

_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """What is wanted of `evo embed`. layers: None for the block at three quarters of the depth."""

    input: str
    output: Path
    layers: tuple[str, ...] | None
    tap: Tap
    pooling: Pooling
    bed: Path | None
    both_strands: bool
    concat: bool
    dtype: str
    keep_case: bool
    overwrite: bool
    max_tokens: int

    def options(self, config: "ModelConfig") -> EmbedOptions:
        """How records are embedded, by a model of this configuration.

        Raises:
            Sh2Error: the model has no such layer.
        """
        return EmbedOptions(
            sites=find_sites(config, self.layers or [str(config.num_layers * 3 // 4)], self.tap),
            pooling=self.pooling,
            both_strands=self.both_strands,
            concat=self.concat,
            dtype=self.dtype,
            max_tokens=self.max_tokens,
        )


def print_layers(model: str) -> None:
    """Print what layers a model has, as TSV; its weights are not loaded."""
    config = _config(model)
    typer.echo("\t".join(["name", "kind", "width", "published", "meaning"]))
    for site in sites(config):
        typer.echo("\t".join([site.name, site.kind, str(config.width), ",".join(site.published) or "-", site.meaning]))


def run_embed(
    request: EmbedRequest, model: str, device: str, precision: Precision, backend: BackendName, kv_dtype: KVDtype
) -> None:
    """Embed records and write the file.

    Raises:
        DataError: the input cannot be read, the output cannot be written, or an unfinished one is in the way.
        Sh2Error: the model cannot be loaded or run, or has no such layer.
    """
    kind = format_of(request.output)
    check_outputs([request.output], [request.input, request.bed])
    intervals = _by_contig(read_bed(request.bed)) if request.bed else None
    records = read_records(request.input)
    # a file that cannot be read and a layer that is not there are found before the model takes its time
    head = list(islice(records, 1))
    options = request.options(_config(model))
    if request.layers is None:
        say(f"layer: {', '.join(options.sites)} (--layers chooses others)")
    replicas = open_replicas(model, device, precision, backend, kv_dtype)
    run = _describe(request, options, replicas, model, backend, kv_dtype)
    tally = Tally()
    with RunFolder(Path(os.path.realpath(request.output)), run.identity, overwrite=request.overwrite) as folder:
        cut = blocks(chain(head, records), intervals, tally, keep_case=request.keep_case)
        try:
            count = _compute(cut, replicas, options, folder.path)
        except (KeyboardInterrupt, SystemExit):
            say(f"what is done is kept in {folder.path}: the same command goes on with it")
            raise
        _write(request, kind, options, replicas, run, read_blocks(folder.path, count))
        folder.remove()
    _report(request, tally, intervals)


def _describe(
    request: EmbedRequest,
    options: EmbedOptions,
    replicas: "Replicas",
    model: str,
    backend: BackendName,
    kv_dtype: KVDtype,
) -> Run:
    return describe_run(
        "embed",
        replicas,
        model=model,
        backend=backend,
        inputs={"input": request.input, "bed": request.bed},
        options={
            "layers": list(options.sites),
            "pooling": options.pooling,
            "strand": "both" if options.both_strands else "forward",
            "combine": "concat" if options.concat else "mean" if options.both_strands else None,
            "dtype": options.dtype,
            "keep_case": request.keep_case,
        }
        | kv_option(kv_dtype),
    )


def _compute(cut: Iterable[Block], replicas: "Replicas", options: EmbedOptions, folder: Path) -> int:
    """Embed all blocks that are not there yet; how many there are in all."""
    if there := count_blocks(folder):
        say(f"going on with {folder}: {there:,} blocks of records are there")
    count = 0

    def to_do(advance: Callable[[int], None]) -> Iterator[Block]:
        nonlocal count
        for block in cut:
            count += 1
            if is_done(folder, block.number, block.digest):
                advance(block.bases)
            else:
                yield block

    with counter("embed", unit="bases") as advance:
        for _ in replicas.map(partial(embed_block, options=options, folder=folder), to_do(advance), advance):
            pass
    return count


def _write(
    request: EmbedRequest, kind: Format, options: EmbedOptions, replicas: "Replicas", run: Run, stream: Stream
) -> None:
    """Write the output, and say what became of ids that it cannot hold."""
    config = replicas.config
    facts = {name: value for name, value in run.identity["options"].items() if value is not None} | {
        "model": run.identity["model"]["name"],
        "weights": run.identity["model"]["weights"],
        "precision": mark_of(config, replicas.precision) or replicas.precision,
        "command": shlex.join(["evo", *sys.argv[1:]]),
        "run": {**run.identity, "environment": run.environment},
    }
    contents = Contents(
        layers=tuple(options.sites),
        width=config.width * (2 if options.concat else 1),
        dtype=options.dtype,
        per_base=options.pooling is Pooling.PER_BASE,
        intervals=request.bed is not None,
        facts=facts,
    )
    renamed = write_embeddings(Path(os.path.realpath(request.output)), kind, contents, stream)
    for old, new in renamed[:_SHOWN]:
        say(f"record `{old}` is embeddings/{new}")
    if renamed:
        warn(f"{len(renamed):,} ids stand under other names in {request.output}: a name is there once, and `/` divides")


def _report(request: EmbedRequest, tally: Tally, intervals: Mapping[str, list[BedInterval]] | None) -> None:
    """Say what was read, and what was left out."""
    say(f"{tally.records:,} records, {tally.bases:,} bases: {request.output}")
    if tally.lower and not request.keep_case:
        say(f"{tally.lower:,} records hold lower-case (soft-masked) bases: read as upper case (--keep-case keeps them)")
    if tally.empty:
        warn(f"{len(tally.empty):,} records are empty and have no vector: {_some(tally.empty)}")
    if tally.beyond:
        warn(f"{len(tally.beyond):,} intervals end behind their record and have no vector: {_some(tally.beyond)}")
    if missing := [contig for contig in intervals or () if contig not in tally.contigs]:
        warn(f"{len(missing):,} contigs of {request.bed} are not in {request.input}: {_some(missing)}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown


def _by_contig(intervals: Iterable[BedInterval]) -> dict[str, list[BedInterval]]:
    found: dict[str, list[BedInterval]] = {}
    for one in intervals:
        found.setdefault(one.interval.contig, []).append(one)
    return found


def _config(model: str) -> "ModelConfig":
    """The configuration of a model; its weights are not read."""
    from sh2.checkpoint import open_model
    from sh2.presets import PRESETS

    return PRESETS[model] if model in PRESETS and not Path(model).exists() else open_model(model).config
