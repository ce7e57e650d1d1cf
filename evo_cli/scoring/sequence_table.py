"""`evo score` of sequences: records to a table, resumable and in parts, and beside it what is said of every base."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError
from data.pieces import Record
from data.reader import read_records
from data.sequence import to_upper_dna
from evo_cli.inference import mark_of, say
from evo_cli.outputs.maker import choose_maker
from evo_cli.outputs.metadata import Run, describe_run
from evo_cli.outputs.partial import partial_path
from evo_cli.outputs.stream import is_stream
from evo_cli.outputs.table import Output, Table, open_table
from evo_cli.progress import counter
from evo_cli.scoring.bases import is_hdf5, write_hdf5
from evo_cli.scoring.request import ScoreRequest
from evo_cli.scoring.sequences import BASE_COLUMNS, COLUMNS, RecordScore, SequenceOptions, score_records

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas

_UNIT = 1  # records that belong together in a part of the work


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceRequest:
    """Which records are scored, and where what is said of every base goes."""

    sequences: str
    per_base: Path | None
    scoring: SequenceOptions


def score_sequences(common: ScoreRequest, request: SequenceRequest) -> None:
    """Write one row a record and, if asked for, one a base."""
    outputs = [
        Output(path=common.output, maker=choose_maker(common.output, variants=None)),
        *_base_output(common, request),
    ]
    watched = _Watched(common.pick(read_records(request.sequences), _UNIT))
    # a file that cannot be read is found before the model takes its time
    head = list(islice(watched, 1))
    replicas = common.open()
    trained = replicas.config.context
    if head and request.scoring.context is None and len(head[0].sequence) > trained:
        say(
            f"`{head[0].name}` has {len(head[0].sequence):,} bp, more than the {trained:,} of the model's training: "
            f"--context {trained} reads it in windows, faster"
        )
    run = _describe(common, request, replicas)
    mark = mark_of(replicas.config, replicas.precision)
    with open_table(outputs, run, mark=mark, overwrite=common.overwrite) as table, counter("score") as advance:
        if table is None:
            return
        writer = _Writer(table, request.per_base)
        records = chain(head, watched)
        for _ in islice(records, table.rows):  # done by an earlier run
            pass
        for block in score_records(replicas, records, request.scoring, advance):
            writer.write(block)
    table.tell_counts("records")
    if watched.lower and not request.scoring.keep_case:
        say(
            f"{watched.lower:,} records hold lower-case (soft-masked) bases: scored as upper case (--keep-case keeps"
            " them)"
        )


def read_condition(path: Path, *, keep_case: bool) -> bytes:
    """The bases of the one record of a file, upper-case unless their case is to be kept.

    Raises:
        DataError: it has another number of records, or no bases.
    """
    records = list(islice(read_records(path), 2))
    if len(records) != 1 or not records[0].sequence:
        what = f"record `{records[0].name}` is empty" if len(records) == 1 else "there are more records than one"
        raise DataError(f"{path}: {what}; what stands before every record is one sequence")
    return records[0].sequence if keep_case else to_upper_dna(records[0].sequence)


def _base_output(common: ScoreRequest, request: SequenceRequest) -> list[Output]:
    if request.per_base is None:
        return []
    maker = None
    if is_hdf5(request.per_base):
        if common.output is None or is_stream(common.output):
            raise DataError(f"{request.per_base}: HDF5 is made from the table, so that must be a file").hint("add `-o`")
        maker = partial(write_hdf5, partial_path(common.output), request.scoring.first_position)
    return [Output(path=request.per_base, maker=maker)]


def _describe(common: ScoreRequest, request: SequenceRequest, replicas: "Replicas") -> Run:
    scoring = request.scoring
    return describe_run(
        "score sequences",
        replicas,
        model=common.model,
        backend=common.backend,
        inputs={"sequences": request.sequences},
        options={
            "prepend_eod": scoring.prepend_eod,
            "keep_case": scoring.keep_case,
            "context": scoring.context,
            "condition": hashlib.sha256(scoring.condition).hexdigest() if scoring.condition else None,
            "max_tokens": scoring.max_tokens,
            "per_base": request.per_base and request.per_base.name,
        }
        | common.options(_UNIT),
    )


class _Watched(Iterator[Record]):
    """Records as they pass by. lower: how many of them had lower-case bases."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self.lower = 0

    def __next__(self) -> Record:
        record = next(self._records)
        self.lower += record.sequence != record.sequence.upper()
        return record


class _Writer:
    """Turns scores into rows of the table and of what is beside it."""

    def __init__(self, table: Table, per_base: Path | None) -> None:
        self._table = table
        self._write_bases = table.others[0] if per_base is not None else None
        self._bare = per_base is not None and is_hdf5(per_base)
        table.begin(COLUMNS, *([] if per_base is None else [None if self._bare else BASE_COLUMNS]))

    def write(self, block: list[RecordScore]) -> None:
        for score in block:
            self._table.write(score.row(), "ok" if score.scored else "not_scored")
            if self._write_bases is None or score.score is None or score.score.log_probs is None:
                continue
            if self._bare:
                self._write_bases(score.score.log_probs.astype("<f4").tobytes())
            else:
                self._write_bases(b"".join(map(self._table.line, score.base_rows())))
        self._table.end_block()
