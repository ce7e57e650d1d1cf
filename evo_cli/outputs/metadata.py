"""What a run is: the metadata beside an output, and whether two runs are the same.

The identity of a run holds what its numbers follow from: runs that agree in it write the same rows, and may continue
each other or be merged. The environment holds what it uses beside that: it is told, and never compared. Knows no table
and no format.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sh2.devices.replicas import Replicas
    from sh2.model import StripedHyena2

HASHED_BYTES = 1 << 30
"""A larger input is told by its size and the time of its last change: reading it again would take minutes."""
_NAMES = frozenset({"path", "name"})  # a file or a model may move


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is, as JSON has it."""

    identity: dict[str, Any]
    environment: dict[str, Any]


def describe_run(
    command: str,
    replicas: "Replicas",
    *,
    model: str,
    backend: str,
    inputs: Mapping[str, str | Path | None],
    options: Mapping[str, Any],
) -> Run:
    """Tell a run that is about to begin.

    Args:
        command: the command, such as `score variants`.
        model: the name that the model was asked for by.
        inputs: files by what they are; None for those not given.
        options: whatever else changes the output; JSON values.
    """
    from sh2.fingerprint import config_hash

    (facts,) = replicas.map(_facts, [None])
    identity = {
        "command": command,
        "evo": _version("evo-sh2"),
        "model": {"name": model, "config": config_hash(replicas.config), "weights": facts["weights"]},
        "precision": replicas.precision,
        "backend": backend,
        "inputs": {name: describe_input(path) for name, path in inputs.items() if path is not None},
        "options": dict(options),
    }
    environment = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": facts["device"],
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
    }
    return Run(identity=identity, environment=environment)


def describe_input(path: str | Path) -> dict[str, Any]:
    """Tell a file: path, size, and SHA-256 or, of a large one, the time of its last change; of stdin only the path.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return {"path": str(path)}
    status = path.stat()
    known: dict[str, Any] = {"path": str(path), "size": status.st_size}
    if status.st_size > HASHED_BYTES:
        return known | {"modified": datetime.fromtimestamp(status.st_mtime, UTC).isoformat()}
    with path.open("rb") as file:
        return known | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs first between two identities, as a clause; None if nothing does. Paths and names may differ."""
    return next(_differences(earlier, json.loads(json.dumps(now)), ()), None)


def _differences(earlier: Any, now: Any, keys: tuple[str, ...]) -> Iterator[str]:
    if isinstance(earlier, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*earlier, *now]):
            if key not in _NAMES:
                yield from _differences(earlier.get(key), now.get(key), (*keys, key))
    elif earlier != now:
        yield _clause(keys, earlier, now)


def _clause(keys: tuple[str, ...], earlier: Any, now: Any) -> str:
    match keys:
        case ("model", "config"):
            return "the model has another configuration"
        case ("model", "weights"):
            return "the model has other weights"
        case ("inputs", name, *_):
            return f"the {name} file has other content"
        case _:
            shown = ["nothing" if value is None else f"{value}" for value in (earlier, now)]
            return f"{keys[-1].replace('_', '-')} was {shown[0]} and is {shown[1]}"


def _facts(model: "StripedHyena2", _: None, progress: Callable[[int], None]) -> dict[str, str]:
    """What only the process that holds the model knows of it."""
    import torch

    from sh2.fingerprint import weights_fingerprint

    device = model.embedding.weight.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"weights": weights_fingerprint(model), "device": f"{device.type}: {name}"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
