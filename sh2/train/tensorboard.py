"""The numbers of a run as TensorBoard events, where that package is installed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sh2.errors import Sh2Error
from sh2.train.records import SpeedRecord, StepRecord


def require_tensorboard() -> Any:
    """Return the class that writes events.

    Raises:
        Sh2Error: the package `tensorboard` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise Sh2Error("writing TensorBoard events needs the package `tensorboard`").hint(
            "pip install tensorboard, or leave out `--tensorboard`"
        ) from None
    return SummaryWriter


class TensorBoard:
    """Writes every record as scalars; an `Observer` of the training loop."""

    def __init__(self, folder: Path, *, after_step: int = 0) -> None:
        """Write to `folder`; events after `after_step` that a killed run left there are superseded.

        Raises:
            Sh2Error: the package `tensorboard` is not installed.
        """
        self._writer = require_tensorboard()(str(folder), purge_step=after_step + 1)

    def step(self, record: StepRecord) -> None:
        self._scalars("train", record)

    def speed(self, record: SpeedRecord) -> None:
        self._scalars("speed", record)

    def note(self, text: str) -> None:
        """Events hold numbers only."""

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, group: str, record: StepRecord | SpeedRecord) -> None:
        values = {key: value for key, value in asdict(record).items() if value is not None}
        step = values.pop("step")
        for key, value in values.items():
            self._writer.add_scalar(f"{group}/{key}", value, step)
