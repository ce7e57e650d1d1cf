"""From files of sequences to one token store: read once, checked, counted, split, written whole or not at all.

Bounded memory whatever the input: 8 MiB of bases and 65,536 records at a time. Knows the order of the steps; the parts
know the rest (data.inputs, reader, splits, tags, store_writer, atomic).
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data import splits
from data.atomic import replacing
from data.errors import DataError
from data.inputs import find_inputs
from data.pieces import Header
from data.reader import scan
from data.recorder import Recorder
from data.source import CHUNK, STDIN, Source
from data.splits import SplitBy
from data.store import SEGMENT, Split, TokenStore, is_store
from data.store_writer import RecordBatch, StoreWriter
from data.tags import Tags, read_tags

LONGEST_MINIMUM = 10_000_000
SHORTEST_REGION = 1024
_UNITS_AT_A_TIME = 1 << 20

Progress = Callable[[int, int], None]
"""Called with the bytes of input read so far, as they lie on disk, and the bytes of all inputs (0 when unknown)."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How to prepare. valid, test: fractions of units; region_length, min_length: in bases; tags: a TSV file.

    force: overwrite an output that is no token store, and rebuild one that is up to date. Raises DataError for
    values out of range.
    """

    split_by: SplitBy = SplitBy.AUTO
    valid: float = 0.05
    test: float = 0.0
    seed: int = 0
    region_length: int = 32768
    min_length: int = 1
    tags: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "split_by", SplitBy(self.split_by))
        for name in ("valid", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; allowed is 0 up to, not including, 1")
        if self.valid + self.test >= 1:
            raise DataError(f"valid and test are {self.valid} and {self.test}; together they must stay below 1")
        if not 0 <= self.seed < 1 << 64:
            raise DataError(f"seed is {self.seed}; allowed is 0 to 2**64 - 1")
        if self.region_length < SHORTEST_REGION:
            raise DataError(f"region_length is {self.region_length}; allowed is {SHORTEST_REGION} or more")
        if not 1 <= self.min_length <= LONGEST_MINIMUM:
            raise DataError(f"min_length is {self.min_length}; allowed is 1 to {LONGEST_MINIMUM}")


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What is in the store. unchanged: it was up to date, nothing was written; checksum: sha256 of the tokens;
    counts: see `rows`; warnings: sentences for people."""

    output: Path
    unchanged: bool
    checksum: str
    counts: Mapping[str, int]
    warnings: tuple[str, ...] = field(default=())

    def rows(self) -> list[tuple[str, int]]:
        """(what, how many), always the same rows in the same order: records, bases, tokens, what was skipped, ..."""
        return list(self.counts.items())


def prepare(
    inputs: Sequence[Path], output: Path, options: PrepareOptions, progress: Progress | None = None
) -> PrepareReport:
    """Write the token store of the inputs (files, folders, patterns, `-`) to `output`, or find that it is there.

    A store at `output` made from the same bytes with the same options is left as it is; one made from others is
    replaced. Raises DataError for inputs that are not DNA, and for an output that is no token store without `force`.
    """
    output = Path(output)
    files, repeats = find_inputs([Path(path) for path in inputs])
    _check_output(output, files, options.force)
    tags = read_tags(options.tags) if options.tags is not None else None
    meter = _Meter(files, progress)
    recorded = _options_record(options, tags)
    if not options.force:
        found = _up_to_date(output, files, recorded, meter)
        if found is not None:
            return found
    warnings = [f"{path}: given more than once, read once" for path in repeats]
    try:
        with replacing(output) as temporary, StoreWriter(temporary) as writer:
            report = _write(writer, files, tags, options, recorded, meter, warnings)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {_reason(error)}") from error
    checksum, counts = report
    return PrepareReport(output=output, unchanged=False, checksum=checksum, counts=counts, warnings=tuple(warnings))


def _write(
    writer: StoreWriter,
    files: list[Path],
    tags: Tags | None,
    options: PrepareOptions,
    recorded: dict[str, Any],
    meter: "_Meter",
    warnings: list[str],
) -> tuple[str, dict[str, int]]:
    recorder = Recorder(writer, options.min_length, tags)
    sources = [_read(file, number, recorder, meter) for number, file in enumerate(files)]
    counts = recorder.counts
    if counts.bases == 0:
        raise DataError(
            f"nothing to store: no record of {options.min_length} bases or more in {len(files)} file(s); skipped "
            f"{counts.skipped_records_empty} empty and {counts.skipped_records_short} short record(s)"
        )
    warnings += recorder.tag_warnings()
    writer.add_tags(tags.texts if tags is not None else ())
    by = options.split_by.resolve(counts.records)
    region = splits.region_length(options.region_length, counts.bases) if by is SplitBy.REGION else None
    summary = _split(writer, options, region, tags.texts if tags is not None else ())
    for split, fraction in ((Split.VALID, options.valid), (Split.TEST, options.test)):
        if fraction > 0 and not summary[f"{split}_segments"]:
            warnings.append(f"the {split} split is empty: too few {by}s that differ")
    rows = {**counts.rows(writer.position), **summary}
    checksum = writer.finish({
        "sources": sources,
        "options": recorded,
        "split_by": by.value,
        "region_length": region,
        "counts": rows,
        "warnings": warnings,
    })  # fmt: skip
    return checksum, rows


def _read(file: Path, number: int, recorder: Recorder, meter: "_Meter") -> dict[str, Any]:
    """Read one file into the store; returns what the metadata keep of it."""
    with Source(file, checksum=True) as source:
        for event in scan(source):
            if isinstance(event, Header):
                recorder.start(event, number)
            else:
                recorder.add(event)
            meter.show(source.bytes_read)
        recorder.end()
        meter.finish(source.bytes_read)
        path = "-" if file == STDIN else str(file.absolute())
        return {"path": path, "size": source.bytes_read, "sha256": source.sha256}


def _split(writer: StoreWriter, options: PrepareOptions, region: int | None, tags: Sequence[str]) -> dict[str, int]:
    """Write the segments of every split; returns their number and bases by split."""
    lowest = splits.LowestValues()
    for _, units in _units(writer, options.seed, region):
        lowest.add(units.value)
    cuts = splits.Cuts.make(lowest.values, lowest.complete, options.valid, options.test)
    summary = {f"{split}_{what}": 0 for split in Split for what in ("segments", "bases")}
    tag_ends = np.cumsum([0, *map(len, tags)])
    for batch, units in _units(writer, options.seed, region):
        kinds, joined = splits.runs(units, cuts.assign(units.value))
        table = np.zeros(len(kinds), dtype=SEGMENT)
        table["record"] = batch.first + joined.record
        table["start"] = batch.offset[joined.record] + joined.start
        table["end"] = batch.offset[joined.record] + joined.end
        tag = batch.tag[joined.record]
        table["tag_start"] = np.where(tag >= 0, tag_ends[tag], 0)
        table["tag_end"] = np.where(tag >= 0, tag_ends[(tag + 1) % len(tag_ends)], 0)
        for kind, split in enumerate(splits.ORDER):
            rows = table[kinds == kind]
            writer.add_segments(split, rows)
            summary[f"{split}_segments"] += len(rows)
            summary[f"{split}_bases"] += int((rows["end"] - rows["start"]).sum())
    return summary


def _units(writer: StoreWriter, seed: int, region: int | None) -> Iterator[tuple[RecordBatch, splits.Units]]:
    """The records of the store with their units, about a million units at a time."""
    for batch in writer.record_batches():
        units = np.maximum(1, batch.length // region) if region else np.ones_like(batch.length)
        groups = np.cumsum(units) // _UNITS_AT_A_TIME
        borders = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
        for start, end in pairwise(borders):
            part = batch.part(start, end)
            yield part, splits.units_of(part.content_hash, part.length, seed, region)


def _reason(error: OSError) -> str:
    """The system's words, dug out of those of HDF5 where need be."""
    quoted = re.search(r"error message = '([^']*)'", str(error))
    return quoted[1] if quoted else error.strerror or str(error)


def _options_record(options: PrepareOptions, tags: Tags | None) -> dict[str, Any]:
    """What the metadata keep of the options: all that the store depends on."""
    return {
        "split_by": options.split_by.value,
        "valid": options.valid,
        "test": options.test,
        "seed": options.seed,
        "region_length": options.region_length,
        "min_length": options.min_length,
        "tags_sha256": tags.sha256 if tags is not None else None,
    }


def _check_output(output: Path, files: Sequence[Path], force: bool) -> None:
    if output == STDIN:
        raise DataError("a token store cannot be written to standard output").hint("name a file: `-o STORE.h5`")
    if any(file != STDIN and output.exists() and output.samefile(file) for file in files):
        raise DataError(f"{output}: is the output and an input too").hint("give the output another name")
    if output.exists() and not output.is_file():
        raise DataError(f"{output}: exists and is not a file").hint("give the output another name")
    if output.exists() and not force and not is_store(output):
        raise DataError(f"{output}: exists and is not a token store").hint("`--force` overwrites it")


def _up_to_date(output: Path, files: list[Path], recorded: dict[str, Any], meter: "_Meter") -> PrepareReport | None:
    """The report of the store at `output` when the same files and options made it, else None."""
    if not output.exists() or not meter.total:
        return None
    try:
        with TokenStore(output) as store:
            metadata = store.metadata
    except DataError:  # of another version, or damaged: made again
        return None
    sources = metadata["sources"]
    sizes = [file.stat().st_size for file in files]
    if metadata["options"] != recorded or [source["size"] for source in sources] != sizes:
        return None
    for file, source in zip(files, sources, strict=True):
        if _sha256(file, meter) != source["sha256"]:
            meter.restart()
            return None
    return PrepareReport(
        output=output,
        unchanged=True,
        checksum=metadata["tokens_sha256"],
        counts=metadata["counts"],
        warnings=tuple(metadata["warnings"]),
    )


def _sha256(file: Path, meter: "_Meter") -> str:
    digest, count = hashlib.sha256(), 0
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                count += len(chunk)
                meter.show(count)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    meter.finish(count)
    return digest.hexdigest()


class _Meter:
    """Adds the progress of file after file up. total: bytes of all files, 0 when one is no regular file."""

    def __init__(self, files: Sequence[Path], progress: Progress | None) -> None:
        regular = all(file != STDIN and file.is_file() for file in files)
        self.total = sum(file.stat().st_size for file in files) if regular else 0
        self._progress = progress
        self._finished = 0
        self._shown = 0

    def show(self, done: int) -> None:
        """So many bytes of the current file are read."""
        if self._progress is not None and self._finished + done != self._shown:
            self._shown = self._finished + done
            self._progress(self._shown, self.total)

    def finish(self, size: int) -> None:
        """The current file is read, all `size` bytes of it."""
        self.show(size)
        self._finished += size

    def restart(self) -> None:
        """The files are read once more."""
        self._finished = 0
