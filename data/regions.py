"""Regions where a track is low or high, as BED.

The caller is plain: the mean over a sliding window is compared with a threshold, and every longest stretch on its one
side is a region. Knows nothing of what the numbers mean.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.atomic import replacing
from data.errors import DataError
from data.tracks import ReadTrack, Values, blocks, runs

_RULE = re.compile(r"\s*(?P<track>\w+)\s*(?P<side>[<>])\s*(?P<threshold>\S+)\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What makes bases a region: the track's mean over `window` bases around each lies below or above a threshold.

    The window of base i holds bases i - window // 2 and the `window` - 1 after it, as far as they exist and have a
    value. A region is at least `least` bp long.
    """

    track: str
    below: bool
    threshold: float
    window: int = 1
    least: int = 1

    @classmethod
    def parse(cls, text: str, *, window: int, least: int) -> Self:
        """Read `track<threshold` or `track>threshold`. Raises DataError."""
        match = _RULE.fullmatch(text)
        try:
            threshold = float(match["threshold"]) if match else np.nan
        except ValueError:
            threshold = np.nan
        if match is None or not np.isfinite(threshold):
            raise DataError(f"{text!r} is no rule for regions: it must be TRACK<NUMBER or TRACK>NUMBER").hint(
                "write for example 'entropy<1.5', quoted so that the shell takes < for no redirection"
            )
        return cls(track=match["track"], below=match["side"] == "<", threshold=threshold, window=window, least=least)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.track}{'<' if self.below else '>'}{self.threshold:g}"

    def holds(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where smoothed values fulfil the rule; never where there is none."""
        return values < self.threshold if self.below else values > self.threshold


@dataclass(frozen=True, slots=True)
class Region:
    """Bases start .. end - 1 (0-based) of a contig; mean: of the track's own values, not of the smoothed ones."""

    contig: str
    start: int
    end: int
    mean: float


def find_regions(contig: str, length: int, read: ReadTrack, rule: Rule) -> Iterator[Region]:
    """The regions of a contig, from left to right, in the memory of a block."""
    begin = end = 0
    total, count = 0.0, 0

    def found() -> Iterator[Region]:
        if end - begin >= max(1, rule.least):
            yield Region(contig, begin, end, total / count if count else np.nan)

    for start, stop in blocks(length):
        smoothed = smooth(contig, start, stop, length, read, rule.window)
        values = read(contig, start, stop)
        for first, last in runs(rule.holds(smoothed)):
            if start + first != end or begin == end:
                yield from found()
                begin, total, count = start + first, 0.0, 0
            end = start + last
            own = values[first:last]
            total += float(np.nansum(own, dtype=np.float64))
            count += int(np.count_nonzero(~np.isnan(own)))
    yield from found()


def smooth(contig: str, start: int, end: int, length: int, read: ReadTrack, window: int) -> NDArray[np.float64]:
    """Means over the window around each of bases start .. end - 1, see `Rule`; NaN where the window has no value."""
    left = max(0, start - window // 2)
    right = min(length, end - window // 2 + window)
    return sliding_mean(read(contig, left, right), window)[start - left : end - left]


def sliding_mean(values: Values, window: int) -> NDArray[np.float64]:
    """Means over the window around each value, as far as there are values: those at the ends have fewer."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0), dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.arange(values.size) - window // 2
    last = np.clip(first + window, 0, values.size)
    first = np.clip(first, 0, values.size)
    held = counts[last] - counts[first]
    return np.where(held > 0, (sums[last] - sums[first]) / np.maximum(held, 1), np.nan)


def write_bed(path: Path, regions: Iterable[tuple[Region, Rule, str]]) -> int:
    """Write regions with their rule and strand (+, - or .), atomically; return how many.

    The columns are those of BED6 and one more: contig, start, end, rule, 0, strand, mean.
    """
    number = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for region, rule, strand in regions:
            place = f"{region.contig}\t{region.start}\t{region.end}"
            stream.write(f"{place}\t{rule}\t0\t{strand}\t{region.mean:.6g}\n")
            number += 1
    return number
