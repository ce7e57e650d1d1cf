"""Errors of the data room: a sentence with file, line or record and the value, and notes that say the way out."""

from typing import Self


class DataError(Exception):
    """A mistake in the user's data: a file that is not what it should be, a value that is not allowed."""

    def hint(self, text: str) -> Self:
        """Attach the way out; the command line prints it as `hint: ...`."""
        self.add_note(text)
        return self
