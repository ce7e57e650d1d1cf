"""The folder of a run: what lies where, and the lock that keeps a second run out."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sh2.errors import Sh2Error


class RunFolder:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"  # everything resolved; can be given back as --config
        self.description = path / "run.json"  # seed, checksums, versions, machine
        self.data = path / "data.h5"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"  # deterministic
        self.speed = path / "speed.jsonl"  # whatever the clock decides
        self.filters = path / "filters.jsonl"  # statistics of the filters, where they are asked for
        self.model = path / "model"
        self.best = path / "best"
        self.adapter = path / "adapter.safetensors"  # the trained adapters alone, of a run that trains them
        self.plot = path / "loss.png"
        self.tensorboard = path / "tensorboard"

    def profile(self, step: int) -> Path:
        """The trace of a step."""
        return self.path / f"profile_step_{step}.json.gz"

    def has_run(self) -> bool:
        """Whether a run has begun here."""
        return any(path.exists() for path in (self.config, self.checkpoints, self.metrics, self.model))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, check that it can be written to, and hold it for this process; a kill lets go of it.

        Raises:
            Sh2Error: the folder cannot be written to, or another process trains into it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise Sh2Error(f"cannot write to the run folder {self.path}: {error.strerror}").hint(
                "give another folder with `-o`"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Sh2Error(f"another process is training into {self.path}").hint(
                    "wait for it, stop it, or give another folder with `-o`"
                ) from None
            yield
