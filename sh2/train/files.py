"""Files that the processes of a run write and check together, each some of them. Knows nothing of what they are for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sh2.checkpoint.safetensors_file import write_safetensors
from sh2.checkpoint.tensors import Tensors, total_bytes
from sh2.train.team import Parts, Team


@dataclass(frozen=True, slots=True)
class File:
    """What goes into a safetensors file."""

    tensors: Tensors
    metadata: Mapping[str, str]


def owners(sizes: Mapping[str, int], processes: int) -> dict[str, int]:
    """Who has to do with each file: the largest first, to whoever has the fewest bytes by then."""
    loads = [0] * processes
    owner = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += sizes[name]
    return owner


def write_files(folder: Path, files: Mapping[str, File], parts: Parts, team: Team) -> dict[str, str]:
    """Write files into a folder that is there, and sync them to the disk; all processes call this.

    Args:
        files: by path in the folder; their tensors are `team.whole(parts)`, every one in one file.

    Returns:
        the SHA-256 of each file.
    """
    owner = owners({name: total_bytes(file.tensors) for name, file in files.items()}, team.processes)
    mine = [name for name in files if owner[name] == team.rank]
    with team.sending(parts, {tensor: owner[name] for name, file in files.items() for tensor in file.tensors}):
        for name in mine:
            (folder / name).parent.mkdir(exist_ok=True)
            write_safetensors(folder / name, files[name].tensors, files[name].metadata)
        digests = {name: file_sha256(folder / name) for name in mine}
    return _of_all(team, digests)


def find_damage(folder: Path, digests: Mapping[str, str], team: Team) -> str | None:
    """Say which file is not what it was, if there is one; all processes call this, and each checks some.

    Args:
        digests: SHA-256 of files by path in the folder.
    """
    paths = {name: folder / name for name in digests}
    sizes = team.every({name: path.stat().st_size if path.is_file() else 0 for name, path in paths.items()})[0]
    owner = owners(sizes, team.processes)
    mine = {name: _damage(paths[name], digests[name]) for name in digests if owner[name] == team.rank}
    faults = _of_all(team, {name: fault for name, fault in mine.items() if fault})
    return next((f"{name} {faults[name]}" for name in digests if name in faults), None)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    try:
        return None if file_sha256(path) == digest else "does not match its checksum"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _of_all(team: Team, mine: dict[str, str]) -> dict[str, str]:
    return {name: value for some in team.every(mine) for name, value in some.items()}
