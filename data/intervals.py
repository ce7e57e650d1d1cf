"""Intervals of a contig: what `chr17:41,276,045-41,276,132` means in bases.

Inside the program an interval is 0-based and half-open; in text, as genome browsers and samtools write it, it is
1-based and inclusive. Knows nothing of files: whether the contig exists is the reference's business.
"""

import re
from dataclasses import dataclass
from typing import Self

from data.errors import DataError

_REGION = re.compile(r"(?P<contig>.+):(?P<first>[0-9][0-9,]*)-(?P<last>[0-9][0-9,]*)", re.ASCII)


@dataclass(frozen=True)
class Interval:
    """Bases `start` to `end - 1` (0-based) of a contig; never empty.

    Raises DataError when the contig has no name or when not 0 <= start < end.
    """

    contig: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if not self.contig:
            raise DataError(f"an interval needs the name of a contig, got {self.start}-{self.end} of none")
        if not 0 <= self.start < self.end:
            raise DataError(
                f"interval {self.contig} [{self.start}, {self.end}) is not one: 0 <= start < end must hold (0-based)"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `contig:first-last`, 1-based and inclusive, commas allowed in the numbers.

        The last colon divides, so that contig names may hold colons (`HLA-A*01:01:01:01:1-100`). Raises DataError.
        """
        match = _REGION.fullmatch(text.strip())
        if match is None:
            raise DataError(f"region {text!r} is not of the form contig:first-last").hint(
                "write for example chr17:41,276,045-41,276,132 (1-based, both ends included)"
            )
        first, last = (int(match[name].replace(",", "")) for name in ("first", "last"))
        if not 1 <= first <= last:
            raise DataError(f"region {text!r}: 1 <= first <= last must hold, got first {first} and last {last}")
        return cls(match["contig"], first - 1, last)

    def __len__(self) -> int:
        """Length in bp."""
        return self.end - self.start

    def __str__(self) -> str:
        """The text that `parse` reads back: 1-based, inclusive, without commas."""
        return f"{self.contig}:{self.start + 1}-{self.end}"
