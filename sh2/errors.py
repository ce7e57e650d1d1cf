"""Errors of the model room: a sentence with the values, and notes that say the way out."""

from typing import Self


class Sh2Error(Exception):
    """A mistake in what the user gave: a configuration, a checkpoint, a request the model cannot meet."""

    def hint(self, text: str) -> Self:
        """Attach the way out; the command line prints it as `hint: ...`."""
        self.add_note(text)
        return self
