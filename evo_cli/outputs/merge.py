"""The parts of a job array as one table again: all of them, of one run, in the order of their input.

Knows metadata and rows; knows nothing of models.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.atomic import replacing
from data.errors import DataError
from evo_cli.inference import say
from evo_cli.outputs.formats import VCF_SUFFIXES, has_suffix, read_rows
from evo_cli.outputs.maker import choose_maker
from evo_cli.outputs.metadata import describe_input, difference
from evo_cli.outputs.partial import metadata_path, partial_path, write_metadata
from evo_cli.outputs.shards import interleave
from evo_cli.outputs.stream import is_stream, open_output
from evo_cli.outputs.table import line

_FACTS = ("rows", "counts", "runs", "outputs")  # of a run, and not of what it computes


@dataclass(frozen=True, slots=True)
class Part:
    """A table, and its metadata."""

    path: Path
    about: dict[str, Any]

    @property
    def shard(self) -> dict[str, int]:
        """number, count and unit of the part."""
        return self.about["options"]["shard"]

    def identity(self) -> dict[str, Any]:
        """What the parts of a run have in common."""
        kept = {key: value for key, value in self.about.items() if key not in _FACTS}
        return kept | {"options": {**kept["options"], "shard": {**self.shard, "number": None}}}

    def rows(self, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The rows, checked against the metadata."""
        rows = read_rows(self.path)
        if next(rows, None) != columns:
            raise DataError(f"{self.path}: its columns are not those of the other parts")
        count = 0
        for row in rows:
            count += 1
            yield row
        if count != self.about["rows"]:
            raise DataError(f"{self.path}: has {count:,} rows, its metadata say {self.about['rows']:,}")


def merge_parts(paths: Sequence[Path], output: Path | None) -> None:
    """Write the rows of all parts, as the run would have written them undivided.

    Raises:
        DataError: a part is missing, not finished, given twice, changed, or of another run.
    """
    parts = read_parts(paths)
    about = _joined(parts)
    maker = choose_maker(output, variants=_variants(about, output))
    columns = next(read_rows(parts[0].path))
    rows = interleave([part.rows(columns) for part in parts], parts[0].shard["unit"])
    if output is None or is_stream(output):
        with open_output(output) as stream:
            stream.writelines(line(row).decode() for row in chain([columns], rows))
    else:
        output = output.resolve()
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder, replacing(output) as final:
            table = final if maker is None else Path(folder, "table.tsv")
            with table.open("wb") as file:
                file.writelines(map(line, chain([columns], rows)))
            if maker is not None:
                maker(table, final)
            write_metadata(about, {output: final})
    counts = ", ".join(f"{count:,} {status}" for status, count in about["counts"].items()) or "none"
    say(f"{about['rows']:,} rows of {len(parts)} parts: {counts}")


def read_parts(paths: Sequence[Path]) -> list[Part]:
    """The parts in their order, if they are one run's and none is missing.

    Raises:
        DataError: they are not.
    """
    parts = [_read_part(path) for path in paths]
    first = parts[0]
    numbered: dict[int, Part] = {}
    for part in parts:
        if clause := difference(first.identity(), part.identity()):
            raise DataError(f"{first.path} and {part.path} are of different runs: {clause}").hint(
                "parts differ in the number that --shard gives, and in nothing else"
            )
        other = numbered.setdefault(part.shard["number"], part)
        if other is not part:
            raise DataError(f"{other.path} and {part.path} are both part {part.shard['number']}")
    count = first.shard["count"]
    if lacking := [str(number) for number in range(1, count + 1) if number not in numbered]:
        shown = ", ".join(lacking[:10]) + (f" and {len(lacking) - 10} more" if len(lacking) > 10 else "")
        raise DataError(f"{'part' if len(lacking) == 1 else 'parts'} {shown} of {count} missing").hint(
            f"run the command again with --shard {lacking[0]}/{count}"
        )
    return [numbered[number] for number in sorted(numbered)]


def _read_part(path: Path) -> Part:
    if partial_path(path).exists() and not path.exists():
        raise DataError(f"{path}: is not finished").hint("the command that began it goes on with it")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        about = json.loads(metadata_path(path).read_text(encoding="utf-8"))
        shard, size = about["options"]["shard"], about["outputs"][0]["size"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path}: has no metadata: {metadata_path(path)} cannot be read").hint(
            "a part is what `evo score --shard i/n -o FILE` writes; its metadata lie beside it and move with it"
        ) from error
    if shard is None:
        raise DataError(f"{path}: is a whole, not a part").hint("parts are written with --shard i/n")
    if path.stat().st_size != size:
        raise DataError(f"{path}: has changed since it was written: {path.stat().st_size:,} bytes, not {size:,}")
    return Part(path, about)


def _joined(parts: Sequence[Part]) -> dict[str, Any]:
    """The metadata of the whole."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.about["counts"])
    identity = parts[0].identity()
    return identity | {
        "options": identity["options"] | {"shard": None},
        "rows": sum(part.about["rows"] for part in parts),
        "counts": dict(counts.most_common()),
        "runs": [{"part": part.shard["number"], **run} for part in parts for run in part.about["runs"]],
    }


def _variants(about: Mapping[str, Any], output: Path | None) -> str | None:
    """The file that the rows are of, which VCF is made from.

    Raises:
        DataError: it is no longer there, or has changed.
    """
    known = about["inputs"].get("variants")
    if known is None or output is None or not has_suffix(output, VCF_SUFFIXES):
        return None
    path = Path(known["path"])
    if not path.is_file() or describe_input(path) != known:
        raise DataError(f"{path}: is not there or has changed, and {output.name} is to be made from it").hint(
            "run this where the variants were scored, or write .tsv or .parquet"
        )
    return str(path)
