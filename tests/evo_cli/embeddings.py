"""Running `evo embed`, and reading what it wrote."""

from pathlib import Path
from typing import Any

import h5py
from typer.testing import CliRunner, Result

from evo_cli.main import app


def embed(*words: object, stdin: str | None = None) -> Result:
    """Run `evo embed` in this process: a new one takes seconds to load what it needs."""
    return CliRunner().invoke(app, ["embed", *map(str, words)], input=stdin)


def content(path: Path) -> dict[str, Any]:
    """All that an HDF5 file of embeddings holds, in its order."""
    with h5py.File(path) as file:
        found = {f"embeddings/{name}": dataset[:] for name, dataset in file["embeddings"].items()}
        if "intervals" in file:
            found |= {f"intervals/{name}": dataset[:].tolist() for name, dataset in file["intervals"].items()}
        return found
