"""Who watches a training run: the bar on stderr, and the signals that ask it to stop."""

import signal
from types import FrameType
from typing import Self

from evo_cli.inference import say
from evo_cli.progress import Bar
from sh2.train.loop import Observer
from sh2.train.records import SpeedRecord, StepRecord


class BarObserver:
    """Shows the training loop on a bar: every step where it is live, every `log_every` steps where it is lines."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._record: StepRecord | None = None
        self._speed = self._mfu = self._validation = "-"

    def step(self, record: StepRecord) -> None:
        self._record = record
        if record.valid_bits_per_base is not None:
            self._validation = f"{record.valid_bits_per_base:.4f}"
        if self._bar.live:
            self._update()

    def speed(self, record: SpeedRecord) -> None:
        self._speed = f"{record.tokens_per_second:,.0f}"
        if record.mfu is not None:
            self._mfu = f"{record.mfu:.0%}"
        self._update()

    def note(self, text: str) -> None:
        self._bar.note(text)

    def _update(self) -> None:
        if (record := self._record) is not None:
            bits = "-" if record.bits_per_base is None else f"{record.bits_per_base:.4f}"
            values = {
                "loss": f"{record.loss:.4f}",
                "bits/base": bits,
                "valid": self._validation,
                "tokens/s": self._speed,
                "MFU": self._mfu,
            }
            self._bar.update(record.step, fields=values)


class Observers:
    """Several observers as one; a note that comes before any of them is a line."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []

    def add(self, *observers: Observer) -> None:
        self._observers += observers

    def step(self, record: StepRecord) -> None:
        for observer in self._observers:
            observer.step(record)

    def speed(self, record: SpeedRecord) -> None:
        for observer in self._observers:
            observer.speed(record)

    def note(self, text: str) -> None:
        if not self._observers:
            say(text)
        for observer in self._observers:
            observer.note(text)


class StopSignals:
    """Turns the first SIGTERM or Ctrl-C into a wish to stop after the step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
