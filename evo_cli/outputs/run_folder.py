"""A folder of what an unfinished run has done, `OUT.partial` beside its output; the same command goes on with it.

Knows the run that it belongs to and who writes it; knows nothing of the files in it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.atomic import replacing
from data.closing import Closing
from data.errors import DataError
from evo_cli.outputs.metadata import difference

_RUN = "run.json"


class RunFolder(Closing):
    """The folder, locked; use it as a context manager, and `remove` it when the output is there."""

    def __init__(self, output: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Open the folder that an earlier run left, or make it.

        Args:
            overwrite: begin anew if it is of another run.

        Raises:
            DataError: it is of a run with another identity, in use, no such folder, or cannot be made.
        """
        self.path = output.with_name(f"{output.name}.partial")
        try:
            self.path.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise DataError(f"{self.path}: is a file, where a folder must be").hint("give another output") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made: {error.strerror or error}") from error
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._adopt(identity, overwrite=overwrite)
        except BlockingIOError as error:
            self.close()
            raise DataError(f"{self.path}: another run is writing it").hint(
                "wait for it, or give another output"
            ) from error
        except BaseException:
            self.close()
            raise

    def _adopt(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        note = self.path / _RUN
        others = [entry for entry in self.path.iterdir() if entry != note]
        if not note.exists() and any(not entry.name.startswith(f".{_RUN}.") for entry in others):
            raise DataError(f"{self.path}: holds other files than those of an unfinished run").hint(
                "give another output"
            )
        if note.exists() and not overwrite:
            try:
                earlier = json.loads(note.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{note}: cannot be read: {error}").hint("--overwrite begins anew") from error
            if clause := difference(earlier, identity):
                raise DataError(f"{self.path}: was begun by another run: {clause}").hint(
                    "repeat the earlier command to go on with it, give another output, or begin anew with --overwrite"
                )
            return
        for entry in others:
            entry.unlink()
        with replacing(note) as temporary:
            temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Remove the folder: the output is there. The note goes last, as a folder without one is nobody's."""
        for entry in self.path.iterdir():
            if entry.name != _RUN:
                entry.unlink()
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Let another run have the folder; what it holds stays."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
