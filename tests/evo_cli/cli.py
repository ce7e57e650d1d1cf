"""Running the command line as a user does: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def evo(*arguments: object, stdin: str | None = None, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `evo` with the arguments; stdout, stderr and the exit code are in the result."""
    return subprocess.run(
        [sys.executable, "-m", "evo_cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
    )


def rows(table: str) -> list[dict[str, str]]:
    """Read a TSV with a header."""
    header, *lines = table.splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
