"""Training windows: a store's segments as an endless stream of token windows, each a pure function of its number.

In every epoch the segments of a split are documents (tag, bases, EOD) laid end to end in a new order, each read on one
strand. That stream is a ring, opened at a new place each epoch and cut into windows of `length` targets, so every token
is predicted exactly once an epoch and windows begin elsewhere each time; the windows come in a new order too. All those
choices are hashes of (seed, epoch), so `Windows.batch` needs no state and a run resumes at any window.

Knows nothing of models, devices or the loss; normalising the weights over a batch is the trainer's part.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.permutation import Permutation, mix, mix_range
from data.sequence import BASES, reverse_complement
from data.store import Split, TokenStore
from data.tokenizer import EOD, PAD

_IN_MEMORY = 512 << 20
_TAG_BIT = 128
_EPOCHS_KEPT = 2
_PIECE = 1 << 14

_TOKEN = bytes(code & ~_TAG_BIT for code in range(256)).upper()
_ORDER, _PHASE, _STRAND, _WINDOW = range(4)


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """How a split becomes windows.

    length: targets of a window, its tokens are one more. seed: chooses the order of documents, strands, cuts and order
    of windows. reverse_complement: each epoch reads every segment on one strand and the next epoch on the other.
    lower_case_weight: weight of a soft-masked base in the loss. shuffle: False gives the split in order, once an epoch,
    for validation. Raises DataError for impossible values.
    """

    length: int
    seed: int = 0
    reverse_complement: bool = True
    lower_case_weight: float = 0.1
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError(f"the length of a window must be at least 1, got {self.length}")
        if not 0 <= self.lower_case_weight <= 1:
            raise DataError(f"the weight of lower-case bases must be 0 to 1, got {self.lower_case_weight}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Windows in rows. B windows, L targets each.

    tokens: uint8 [B, L + 1], upper-cased, PAD after the end of an epoch. weights: float32 [B, L], of predicting
    tokens[:, 1:]: 1 for ACGT, the lower-case weight for soft-masked bases, 0 for ambiguity codes, tags, EOD and PAD.
    document_starts: bool [B, L + 1], True where a token is the first of its document.
    """

    tokens: NDArray[np.uint8]
    weights: NDArray[np.float32]
    document_starts: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """One epoch's ring of D documents: `segments` [D] in their order, `ends` int64 [D] where each ends (after its EOD),
    `reverse` bool [D], `phase` the position at which the ring is opened, `windows` the order of the windows.
    """

    segments: NDArray[np.void]
    ends: NDArray[np.int64]
    reverse: NDArray[np.bool_]
    phase: int
    windows: Permutation | None


class Windows:
    """The windows of a split; `len` is their number in an epoch.

    Raises DataError when the split is empty. Reads the store while it lives, so the store must stay open.
    """

    def __init__(self, store: TokenStore, split: Split | str, options: WindowOptions) -> None:
        self.options = options
        self._segments = store.segments(split)
        if len(self._segments) == 0:
            raise DataError(f"{store.path}: split {Split(split).value!r} holds no bases").hint(
                "prepare the store with a larger share for this split"
            )
        self._lengths = self._document_lengths()
        self._ring = int(self._lengths.sum())
        self._tags = store.tags | np.uint8(_TAG_BIT)
        self._store = store
        self._memory = store.load() if len(store.tokens) <= _IN_MEMORY else None
        self._epochs: dict[int, _Epoch] = {}
        self._weight = np.zeros(256, dtype=np.float32)
        self._weight[list(BASES.lower())] = options.lower_case_weight
        self._weight[list(BASES.upper())] = 1.0

    def __len__(self) -> int:
        return -(-self._ring // self.options.length)

    def batch(self, first: int, count: int) -> Batch:
        """Windows number first .. first + count - 1 of the endless stream; window n belongs to epoch n // len(self).

        Depends on nothing but the store, the split, the options and the numbers.
        """
        if first < 0 or count < 1:
            raise DataError(f"a batch needs first >= 0 and count >= 1, got first {first} and count {count}")
        coded = np.full((count, self.options.length + 1), PAD, dtype=np.uint8)
        starts = np.zeros(coded.shape, dtype=np.bool_)
        done = 0
        while done < count:
            number, window = divmod(first + done, len(self))
            stop = min(count, done + len(self) - window)
            self._fill_all(self._epoch(number), window, coded[done:stop], starts[done:stop])
            done = stop
        tokens = np.frombuffer(bytearray(coded.data).translate(_TOKEN), dtype=np.uint8).reshape(coded.shape)
        return Batch(tokens=tokens, weights=self._weights(coded), document_starts=starts)

    def _weights(self, coded: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The weights of all but the first token of every row: a piece at a time, whose indices stay in the cache."""
        count, length = len(coded), self.options.length
        weights = np.empty((count, length), dtype=np.float32)
        rows, columns = max(1, _PIECE // length), min(length, _PIECE)
        for row in range(0, count, rows):
            for column in range(0, length, columns):
                piece = weights[row : row + rows, column : column + columns]
                codes = coded[row : row + rows, column + 1 : column + 1 + columns]
                self._weight.take(codes, out=piece, mode="clip")
        return weights

    def _document_lengths(self) -> NDArray[np.int64]:
        table = self._segments
        return np.asarray(table["end"] - table["start"] + table["tag_end"] - table["tag_start"] + 1, dtype=np.int64)

    def _epoch(self, number: int) -> _Epoch:
        found = self._epochs.get(number)
        if found is None:
            while len(self._epochs) >= _EPOCHS_KEPT:
                self._epochs.pop(min(self._epochs))
            found = self._epochs[number] = self._lay_out(number)
        return found

    def _lay_out(self, number: int) -> _Epoch:
        options, count = self.options, len(self._segments)
        order = np.arange(count)
        if options.shuffle:
            order = np.argsort(mix_range(mix(options.seed, _ORDER, number), count), kind="stable")
        reverse = np.zeros(count, dtype=np.bool_)
        if options.reverse_complement:
            coins = mix_range(mix(options.seed, _STRAND), count) & np.uint64(1)
            reverse = (coins ^ np.uint64(number & 1)).astype(np.bool_)
        return _Epoch(
            segments=self._segments[order],
            ends=np.cumsum(self._lengths[order]),
            reverse=reverse[order],
            phase=mix(options.seed, _PHASE, number) % self._ring if options.shuffle else 0,
            windows=Permutation(size=len(self), key=mix(options.seed, _WINDOW, number)) if options.shuffle else None,
        )

    def _fill_all(self, epoch: _Epoch, window: int, coded: NDArray[np.uint8], starts: NDArray[np.bool_]) -> None:
        """Write window number `window` of an epoch and those after it, one a row."""
        width = self.options.length + 1
        windows = window + np.arange(len(coded))
        if epoch.windows is not None:
            windows = epoch.windows(windows)
        positions = (epoch.phase + windows * self.options.length - 1) % self._ring
        # most windows are bases of one document, and hold no start of it: a copy each
        documents = np.searchsorted(epoch.ends, positions, side="right")
        segments, reverse = epoch.segments[documents], epoch.reverse[documents]
        bases_end = epoch.ends[documents] - 1
        before = positions - (bases_end - (segments["end"] - segments["start"]))
        plain = (before > 0) & (positions + width <= bases_end) & ((windows + 1) * self.options.length <= self._ring)
        columns = (windows, segments["start"], segments["end"], before, reverse, plain)
        for row, (number, start, end, low, backwards, is_plain) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            if is_plain:
                coded[row] = self._bases(start, end, low, low + width, backwards)
            else:
                self._fill(epoch, number, coded[row], starts[row])

    def _fill(self, epoch: _Epoch, window: int, row: NDArray[np.uint8], starts: NDArray[np.bool_]) -> None:
        """Write the tokens of a window, tags marked by _TAG_BIT, and the starts of its documents."""
        first_target = window * self.options.length
        wanted = min(len(row), self._ring - first_target + 1)
        position = (epoch.phase + first_target - 1) % self._ring
        row[:wanted] = EOD
        done = 0
        while done < wanted:
            step = min(wanted - done, self._ring - position)
            self._fill_linear(epoch, position, row[done : done + step], starts[done : done + step])
            done, position = done + step, 0

    def _fill_linear(self, epoch: _Epoch, position: int, row: NDArray[np.uint8], starts: NDArray[np.bool_]) -> None:
        """Write the tokens at position .. position + len(row) - 1 of the ring, which do not pass its end."""
        for (start, end, tag_start, tag_end, document_end), reverse in self._documents(epoch, position, len(row)):
            tag_length = tag_end - tag_start
            bases_at = document_end - 1 - (end - start) - position
            tag_at = bases_at - tag_length
            if tag_at >= 0:
                starts[tag_at] = True
            if tag_length and bases_at > 0:
                row[max(tag_at, 0) : bases_at] = self._tags[tag_start - min(tag_at, 0) : tag_end][
                    : len(row) - max(tag_at, 0)
                ]
            low, high = max(bases_at, 0), min(document_end - 1 - position, len(row))
            if low < high:
                row[low:high] = self._bases(start, end, low - bases_at, high - bases_at, reverse)

    def _documents(
        self, epoch: _Epoch, position: int, length: int
    ) -> Iterator[tuple[tuple[int, int, int, int, int], bool]]:
        """Documents in a stretch of the ring: (start, end, tag_start, tag_end, end in the ring), and if reversed."""
        # most stretches lie in one document or two: Python looks that up faster than numpy begins to
        ends = epoch.ends.data
        index = bisect_right(ends, position)
        before = -1
        while before < position + length - 1:
            _, start, end, tag_start, tag_end = epoch.segments[index].item()
            yield (start, end, tag_start, tag_end, ends[index]), bool(epoch.reverse[index])
            before, index = ends[index] - 1, index + 1

    def _bases(self, start: int, end: int, low: int, high: int, reverse: bool) -> NDArray[np.uint8]:
        """Bases low .. high - 1 of the segment [start, end) of the store, read on the given strand."""
        if reverse:
            return np.frombuffer(reverse_complement(self._read(end - high, end - low).tobytes()), dtype=np.uint8)
        return self._read(start + low, start + high)

    def _read(self, start: int, end: int) -> NDArray[np.uint8]:
        return self._store.read(start, end) if self._memory is None else self._memory[start:end]
