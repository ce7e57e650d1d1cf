"""Running the command line as a user does: in a process of its own.

Importing torch takes a process seconds, and hundreds are started here: they are forked from one that has imported it
and nothing of ours. What depends on the start of Python itself is tested in tests that start it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "typer"])
_STREAMS = ("stdin", "stdout", "stderr")


def evo(*arguments: object, stdin: str | None = None, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `python -m evo_cli` with the arguments; stdout, stderr and the exit code are in the result."""
    words = [str(word) for word in arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in _STREAMS]
        streams[0].write_text(stdin or "")
        process = _CONTEXT.Process(
            target=_evo, args=(words, streams, {**os.environ, "NO_COLOR": "1"}, cwd or Path.cwd())
        )
        process.start()
        try:
            process.join()
        finally:
            process.kill()  # where the test ran out of time
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, *(file.read_text() for file in streams[1:]))


def _evo(words: list[str], streams: list[Path], environment: dict[str, str], cwd: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, (name, file) in enumerate(zip(_STREAMS, streams, strict=True)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    sys.argv[1:] = words
    runpy.run_module("evo_cli", run_name="__main__", alter_sys=True)


def rows(table: str) -> list[dict[str, str]]:
    """Read a TSV with a header."""
    header, *lines = table.splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
