"""`evo predict`: what a head says of records, as a table that survives being killed."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.pieces import Record
from data.reader import read_records
from data.sequence import to_upper_dna
from evo_cli.finetuning.run import HEAD, Place
from evo_cli.finetuning.vectors import Vectors, blocks
from evo_cli.inference import mark_of, warn
from evo_cli.outputs.maker import choose_maker
from evo_cli.outputs.metadata import Run, describe_run
from evo_cli.outputs.stream import check_outputs
from evo_cli.outputs.table import Output, Table, open_table
from evo_cli.progress import counter
from sh2.errors import Sh2Error
from sh2.heads import Head, load_head

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """What is wanted of `evo predict`. output: None is stdout."""

    sequences: str
    run: Path
    output: Path | None
    max_tokens: int
    overwrite: bool


def model_of(run: Path, given: str | None) -> str:
    """The model that a run's head reads: the one given, the run's own, or the one that it was trained on.

    Raises:
        Sh2Error: the folder holds no head.
    """
    _, name, _ = load_head(run / HEAD)
    own = run / "model"
    return given or (str(own) if own.is_dir() else name)


def run_predict(request: PredictRequest, place: Place) -> None:
    """Write a row a record.

    Raises:
        DataError: the input cannot be read or the output cannot be written.
        Sh2Error: the head or the model cannot be read, or do not belong together.
    """
    head, _, weights = load_head(request.run / HEAD)
    check_outputs([request.output], [request.sequences])
    outputs = [Output(path=request.output, maker=choose_maker(request.output, variants=None))]
    records = read_records(request.sequences)
    first = list(islice(records, 1))  # a file that cannot be read is found before the model takes its time
    replicas = place.open()
    if replicas.config.width != len(head.mean):
        raise Sh2Error(f"the head reads {len(head.mean)} channels; {place.model} has {replicas.config.width}").hint(
            "give the model that it was trained on with `--model`"
        )
    run = _describe(request, place, replicas, head)
    if run.identity["model"]["weights"] != weights:
        warn(f"the head was trained on other weights, or weights in other numbers, than those of {place.model}")
    mark = mark_of(replicas.config, replicas.precision)
    with open_table(outputs, run, mark=mark, overwrite=request.overwrite) as table, counter("predict") as advance:
        if table is None:
            return
        table.begin(columns(head))
        everything = chain(first, records)
        for _ in islice(everything, table.rows):  # done by an earlier run
            pass
        vectors = Vectors(layer=head.layer, pooling=head.pooling, max_tokens=request.max_tokens)
        _write(table, head, vectors, replicas, everything, advance)
    table.tell_counts("records")


def columns(head: Head) -> tuple[str, ...]:
    """The header of the table: of classes, the likeliest and the probability of each."""
    return ("record", "length", "prediction", *(f"p_{name}" for name in head.classes))


def row(head: Head, record: Record, outputs_c: torch.Tensor) -> tuple[str, ...]:
    """The cells of `columns` for a record and what the head gives for it."""
    known = (record.name, str(len(record.sequence)))
    if not head.classes:
        return (*known, f"{outputs_c.item():.6g}")
    probabilities = torch.softmax(outputs_c.double(), dim=0)
    return (*known, head.classes[int(probabilities.argmax())], *(f"{one:.6f}" for one in probabilities.tolist()))


def _write(
    table: Table,
    head: Head,
    vectors: Vectors,
    replicas: "Replicas",
    records: Iterator[Record],
    advance: Callable[[int], None],
) -> None:
    held: deque[list[Record]] = deque()

    def jobs() -> Iterator[list[bytes]]:
        for block in blocks(records, lambda record: len(record.sequence), vectors.block_bases):
            held.append(block)
            yield [to_upper_dna(record.sequence) for record in block if record.sequence]

    for x_nd in vectors.of(replicas, jobs(), advance):
        predicted = iter(head.outputs(torch.from_numpy(x_nd)))
        for record in held.popleft():
            if record.sequence:
                table.write(row(head, record, next(predicted)), "ok")
            else:
                table.write((record.name, "0", *["NA"] * (len(columns(head)) - 2)), "empty")
        table.end_block()


def _describe(request: PredictRequest, place: Place, replicas: "Replicas", head: Head) -> Run:
    return describe_run(
        "predict",
        replicas,
        model=place.model,
        backend=place.backend,
        inputs={"sequences": request.sequences, "head": request.run / HEAD},
        options={"max_tokens": request.max_tokens, "layer": head.layer, "pooling": head.pooling},
    )
