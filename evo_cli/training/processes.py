"""A run of many processes has one voice: the first talks, and who fails first says why."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from evo_cli.signals import INTERRUPTED
from sh2.errors import Sh2Error
from sh2.parallel.processes import Place, Processes, joined, lost_contact


@contextmanager
def one_voice(place: Place | None) -> Iterator["Meeting"]:
    """Within this, every process but the first is silent, and of those that fail one says why.

    Args:
        place: of this process; None for one that is alone.
    """
    meeting = Meeting(place)
    with ExitStack() as silence:
        if place is not None and place.rank:
            nowhere = silence.enter_context(Path(os.devnull).open("w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        try:
            yield meeting
            meeting.leave()
        except (Exception, KeyboardInterrupt) as error:
            if place is None:
                raise
            if not meeting.speaks():
                sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
            if lost_contact(error):
                raise _lost(place) from None
            raise


class Meeting:
    """The processes of a run, once they have met."""

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self._stack = ExitStack()
        self._processes: Processes | None = None

    def join(self, device: str) -> Processes | None:
        """Meet the others; None if this process is alone. Until then, all of them do the same."""
        if self.place is not None:
            self._processes = self._stack.enter_context(joined(self.place, device))
        return self._processes

    def leave(self) -> None:
        """Part from the others, when all is done."""
        self._stack.close()

    def speaks(self) -> bool:
        """Whether this process says what went wrong."""
        if self._processes is not None:
            return self._processes.speaks()
        return self.place is None or self.place.rank == 0


def _lost(place: Place) -> Sh2Error:
    return Sh2Error(f"process {place.rank + 1} of {place.ranks} has lost contact with another, which is gone").hint(
        "if that one said nothing, the system has killed it: look for lack of memory; start all again with `--resume`"
    )
