"""Ctrl-C and SIGTERM as exceptions that always arrive, so that what a command has open is closed and removed.

An exception that a signal raises can get lost: Python drops it within a destructor or a weak reference's callback
(h5py has many). It is raised again until it is under way. While a module is imported it waits: compiled ones that
call Python as they start (Triton's) end the process with "terminate called" where that raises.
"""

import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = 130
TERMINATED = 143
_SECONDS = 0.1


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. Where a KeyboardInterrupt itself leaves a string run by `exec`, Python drops our exit code at its end."""


class Signals:
    """What became of the signals of this process."""

    def __init__(self) -> None:
        self._pending: BaseException | None = None

    def watch(self) -> None:
        """Let SIGTERM leave by SystemExit as Ctrl-C leaves by KeyboardInterrupt, and let neither get lost."""
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGALRM, self._raise)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
            signal.signal(signal.SIGINT, self._receive)
        sys.unraisablehook = self._unraisable

    def settle(self) -> None:
        """Stop repeating: the exception has arrived."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._pending = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._pending = Interrupted() if number == signal.SIGINT else SystemExit(TERMINATED)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS, _SECONDS)
        self._raise(number, frame)

    def _raise(self, _: int, frame: FrameType | None) -> None:
        # what runs with the exception at hand is cleaning up: it is left in peace
        if self._pending is None or _in_chain(self._pending, sys.exc_info()[1]) or _importing(frame):
            return
        raise self._pending

    def _unraisable(self, lost: Any) -> None:
        if lost.exc_value is not self._pending:
            sys.__unraisablehook__(lost)


def _in_chain(wanted: BaseException, error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if error is wanted:
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


SIGNALS = Signals()
