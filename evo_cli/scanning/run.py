"""`evo scan` from a request to its files: what is checked before the model is loaded, what is written after it ran."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Any, TypeVar

import typer

from data.atomic import replacing
from data.errors import DataError
from data.intervals import Interval
from data.reference import Reference
from data.regions import Region, Rule, find_regions, write_bed
from data.tracks import TrackFormat, check_format, write_track
from evo_cli.inference import BackendName, KVDtype, Precision, kv_option, mark_of, open_replicas, say
from evo_cli.outputs.metadata import Run, describe_run
from evo_cli.outputs.run_folder import RunFolder
from evo_cli.outputs.stream import check_outputs
from evo_cli.progress import counter
from evo_cli.scanning.tracks import Contig, Scan, ScanOptions, Strand, read_contigs

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is wanted of a scan."""

    genome: Path
    prefix: Path
    options: ScanOptions
    scanned: tuple[Strand, ...]  # forward, reverse or both
    form: TrackFormat
    rules: tuple[Rule, ...]
    plots: tuple[Interval, ...]

    @property
    def strands(self) -> tuple[Strand, ...]:
        """The strands that are written."""
        return (*self.scanned, Strand.MEAN) if len(self.scanned) > 1 else self.scanned

    def track_path(self, track: str, strand: Strand) -> Path:
        """Where a track of a strand is written."""
        return self._path(f"{track}.{strand}{self.form.suffix}")

    def plot_path(self, interval: Interval) -> Path:
        """Where a region is drawn."""
        # names of contigs may hold anything
        name = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in interval.contig)
        return self._path(f"{name}_{interval.start + 1}-{interval.end}.png")

    @property
    def regions_path(self) -> Path:
        """Where regions of all rules are written."""
        return self._path("regions.bed")

    @property
    def metadata_path(self) -> Path:
        """Where it is told what made the files."""
        return self._path("meta.json")

    @property
    def outputs(self) -> list[Path]:
        """The files to write."""
        tracks = [self.track_path(track, strand) for track in self.options.tracks for strand in self.strands]
        regions = [self.regions_path] if self.rules else []
        return [*tracks, *regions, *map(self.plot_path, self.plots), self.metadata_path]

    def _path(self, ending: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.{ending}")


def parsed(option: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """Parse what was given to an option; what is wrong with it is wrong with the command line."""
    try:
        return parse(text)
    except DataError as error:
        raise typer.BadParameter(
            "; ".join([str(error), *getattr(error, "__notes__", [])]), param_hint=option
        ) from error


def check_request(request: Request) -> list[Contig]:
    """Find what cannot be done before any work is; return the contigs that there are to scan.

    Raises:
        DataError: the genome cannot be read, an output cannot be written, or a region is not in the genome.
    """
    if request.prefix.is_dir():
        raise DataError(f"{request.prefix}: is a folder, not what names of files begin with").hint(
            f"write for example -o {request.prefix / 'genome'}"
        )
    if str(request.genome) == "-":
        raise DataError("a genome from standard input cannot be scanned: it is read twice").hint("write it to a file")
    for rule in request.rules:
        if rule.track not in request.options.tracks:
            raise DataError(f"the rule {rule} is for a track that is not computed").hint(
                f"the tracks are {', '.join(request.options.tracks)}: --tracks chooses others"
            )
    check_format(request.form)
    check_outputs(request.outputs, [request.genome])
    contigs = read_contigs(request.genome)
    if not contigs:
        raise DataError(f"{request.genome}: no contig has a base: there is nothing to scan")
    lengths = {contig.name: contig.length for contig in contigs}
    for interval in request.plots:
        if interval.end > lengths.get(interval.contig, 0):
            there = f"has {lengths[interval.contig]:,} bp" if interval.contig in lengths else "is not in it"
            raise DataError(f"{request.genome}: {interval} cannot be drawn: contig {interval.contig!r} {there}").hint(
                f"the first contigs are {', '.join(list(lengths)[:5])}"
            )
    return contigs


def run_scan(
    request: Request,
    *,
    model: str,
    device: str,
    precision: Precision,
    backend: BackendName,
    kv_dtype: KVDtype,
    overwrite: bool,
) -> None:
    """Scan a genome, write the tracks, and remove what was kept for going on.

    Raises:
        DataError: as `check_request`, or an unfinished scan of other settings is in the way.
        Sh2Error: the model cannot be loaded or run.
    """
    contigs = check_request(request)
    replicas = open_replicas(model, device, precision, backend, kv_dtype)
    _remark(contigs, request.options, replicas.config.context)
    options = request.options
    run = describe_run(
        "scan",
        replicas,
        model=model,
        backend=backend,
        inputs={"genome": request.genome},
        options={"tracks": list(options.tracks), "context": options.context, "prepend_eod": options.prepend_eod}
        | kv_option(kv_dtype),
    )
    with RunFolder(request.prefix, run.identity, overwrite=overwrite) as folder:
        scan = Scan(request.genome, contigs, request.scanned, options, folder.path)
        done = [piece for piece in scan.pieces if piece.is_whole]
        if done:
            what = "contigs and strands" if len(request.scanned) > 1 else "contigs"
            say(f"going on with {folder.path}: {len(done):,} of {len(scan.pieces):,} {what} are there")
        total, start = (sum(piece.length for piece in pieces) for pieces in (scan.pieces, done))
        with counter("scan", total=total, start=start) as advance:
            scan.compute(replicas, advance)
        mark = mark_of(replicas.config, replicas.precision)
        _write(request, contigs, scan, run, mark=mark, model="/".join(Path(model).parts[-2:]))
        folder.remove()


def _remark(contigs: list[Contig], options: ScanOptions, trained: int) -> None:
    """Say what of the contigs a user may not expect."""
    longest = max(contigs, key=lambda contig: contig.length)
    if options.context is None and longest.length > trained:
        say(
            f"`{longest.name}` has {longest.length:,} bp, more than the {trained:,} of the model's training: "
            f"--context {trained} reads it in windows, faster"
        )
    if lower := sum(contig.lower for contig in contigs):
        say(f"{lower:,} bases are in lower case: scanned as upper case")


def _write(request: Request, contigs: list[Contig], scan: Scan, run: Run, *, mark: str | None, model: str) -> None:
    """Write all outputs: the tracks, and what is drawn and told of them."""
    lengths = {contig.name: contig.length for contig in contigs}
    with counter("write") as advance:
        for track in request.options.tracks:
            for strand in request.strands:
                write_track(
                    request.track_path(track, strand), lengths, scan.reader(track, strand), request.form, advance
                )
    if request.rules:
        number = write_bed(request.regions_path, _regions(request, lengths, scan))
        say(f"{number:,} regions in {request.regions_path}")
    for interval in request.plots:
        _plot(request, interval, scan, model)
    about: dict[str, Any] = {
        **run.identity,
        **({"precision_mark": mark} if mark else {}),
        "strands": list(request.strands),
        "contigs": lengths,
        "regions": [{"rule": str(rule), "smooth": rule.window, "min_length": rule.least} for rule in request.rules],
        "environment": run.environment,
        "outputs": [path.name for path in request.outputs],
    }
    with replacing(request.metadata_path) as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"{len(lengths):,} contigs, {sum(lengths.values()):,} bp: {len(request.outputs)} files {request.prefix}.*")


def _regions(request: Request, lengths: dict[str, int], scan: Scan) -> Iterator[tuple[Region, Rule, str]]:
    """Regions of all rules by contig and start, of the mean of the strands where there is one."""
    strand = request.strands[-1]

    def of(rule: Rule, contig: str) -> Iterator[tuple[Region, Rule, str]]:
        for region in find_regions(contig, lengths[contig], scan.reader(rule.track, strand), rule):
            yield region, rule, strand.sign

    for contig in lengths:
        yield from merge(*(of(rule, contig) for rule in request.rules), key=lambda found: found[0].start)


def _plot(request: Request, interval: Interval, scan: Scan, model: str) -> None:
    from evo_cli.scanning.plot import LOGO_LENGTH, Picture, plot_region

    tracks = {
        (track, str(strand)): partial(scan.reader(track, strand), interval.contig)
        for track in request.options.tracks
        for strand in request.strands
    }
    sequence = b""
    if len(interval) <= LOGO_LENGTH:
        with Reference(request.genome) as reference:
            sequence = reference.fetch(interval.contig, interval.start, interval.end)
    title = f"{interval.contig}:{interval.start + 1:,}-{interval.end:,}, predicted by {model}"
    plot_region(request.plot_path(interval), Picture(interval=interval, tracks=tracks, sequence=sequence, title=title))
