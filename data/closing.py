"""What is closed when a `with` block ends. Knows nothing of what it closes."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """A context manager that gives itself and calls its own `close`, however the block ends."""

    @abstractmethod
    def close(self) -> None:
        """Close what is held; safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
