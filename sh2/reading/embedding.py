"""Embeddings: token ids in, the outputs of chosen layers out, pooled on the device as they arise.

Layers are looked at by forward hooks, so the model stays as it is. What a hook sees of a piece of the sequences is
reduced at once; a sequence of any length takes the memory of one piece. Knows nothing of FASTA, strands or files.
"""

# B batch, L length, D width, S spans, N sites

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sh2.errors import Sh2Error
from sh2.model import StripedHyena2
from sh2.reading.chunks import chunks
from sh2.reading.fetch import fetched
from sh2.reading.scoring import batches_of_equal_length
from sh2.reading.sites import NORM, Pooling, Tap, find_sites
from sh2.tokens import Tokens, as_rows

_MASK_ENTRIES = 1 << 25  # of the mask that tells which tokens lie in which span, at once

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """A sequence, and the spans of it that are wanted.

    ids: token ids [L], any integers. spans_S2: int64, the first token of every span and the one after its last,
    0 <= start < end <= L.
    """

    ids: NDArray[np.integer]
    spans_S2: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Vectors of a row that are done.

    first: number of the first one's span or, per base, of its token. values: float32 [vectors, N, D].
    """

    row: int
    first: int
    values: NDArray[np.float32]


def embed(
    model: StripedHyena2,
    sequences: Sequence[Tokens],
    layers: Sequence[str | int],
    *,
    tap: str = Tap.RESIDUAL,
    pooling: str = Pooling.MEAN,
    max_tokens: int = 65_536,
    chunk: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[NDArray[np.float32]]:
    """Embed sequences by the outputs of some of a model's layers.

    Sequences of equal length share a batch, none is padded; long ones run in chunks that carry the state.

    Args:
        sequences: text, bytes or token ids, in any mix.
        layers: numbers of blocks, counted from 0, `"all"`, or names, as `sh2.reading.sites.find_sites` takes them.
        tap: what is taken of a block that is given by its number: `residual`, `mixer`, `mlp`, ...
        pooling: `mean`, `last`, `max`, `second-half` or `per-base`.
        max_tokens: tokens of one batch and chunk, at most.
        chunk: tokens of one sequence that are run at once, at most; fewer where memory is short.
        progress: called with the number of tokens run, after every chunk of a batch.

    Returns:
        An array for every sequence, in order, float32 [N, D]; per base [L, N, D]. N is the number of layers.

    Raises:
        Sh2Error: there is no such layer, tap or pooling; a sequence is empty or has an id outside the vocabulary.
    """
    if isinstance(layers, int | str):
        raise Sh2Error(f"layers must be a list of numbers or names, not {layers!r}").hint(
            f"put it into a list: [{layers!r}]"
        )
    sites = find_sites(model.config, [str(layer) for layer in layers], _member(Tap, "tap", tap))
    wanted = _member(Pooling, "pooling", pooling)
    rows = []
    for number, ids in enumerate(as_rows(sequences, model.config.vocab_size)):
        if not ids.size:
            raise Sh2Error(f"sequence {number} is empty: there is nothing to embed")
        rows.append(Row(ids=ids, spans_S2=pooled_spans(np.array([[0, len(ids)]]), wanted)))
    per_base = wanted is Pooling.PER_BASE
    shape = len(sites), model.config.width
    results = [np.empty((len(row.ids) if per_base else 1, *shape), np.float32) for row in rows]
    for part in embed_rows(model, rows, sites, wanted, max_tokens=max_tokens, chunk=chunk, progress=progress):
        results[part.row][part.first : part.first + len(part.values)] = part.values
    return results if per_base else [result[0] for result in results]


def pooled_spans(spans_S2: NDArray[np.int64], pooling: Pooling) -> NDArray[np.int64]:
    """Return the tokens of each span that a pooling looks at, int64 [S, 2] again."""
    start_S, end_S = spans_S2[:, 0], spans_S2[:, 1]
    if pooling is Pooling.LAST:
        start_S = end_S - 1
    elif pooling is Pooling.SECOND_HALF:
        start_S = start_S + (end_S - start_S) // 2
    return np.stack([start_S, end_S], axis=1)


def embed_rows(
    model: StripedHyena2,
    rows: Sequence[Row],
    sites: Mapping[str, str],
    pooling: Pooling,
    *,
    max_tokens: int = 65_536,
    chunk: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Part]:
    """Embed rows, those of equal length together; a vector comes as soon as it is known.

    A row is read to the end of its last span: in a causal model nothing behind it matters.

    Args:
        sites: names and modules, as `find_sites` returns them.
        pooling: `max` takes the maximum over every span, `per-base` all tokens up to the last span's end, and the
            others the mean over every span, as `pooled_spans` gives it.
        max_tokens, chunk, progress: as for `embed`.

    Raises:
        Sh2Error: a setting is below 1, or not even a short piece fits into memory.
    """
    for name, value in (("max_tokens", max_tokens), ("chunk", chunk)):
        if value < 1:
            raise Sh2Error(f"{name} must be at least 1, not {value}")
    read = [number for number, row in enumerate(rows) if len(row.spans_S2)]
    lengths = [int(rows[number].spans_S2[:, 1].max()) for number in read]
    for places in batches_of_equal_length(lengths, max_tokens=max_tokens, chunk=chunk):
        members = [read[place] for place in places]
        batch = _Batch([rows[member].spans_S2 for member in members], pooling)
        ids = [rows[member].ids[: lengths[places[0]]] for member in members]
        for part in _run(model, ids, sites, batch, chunk, progress):
            yield Part(row=members[part.row], first=part.first, values=part.values)


@torch.inference_mode()
def _run(
    model: StripedHyena2,
    ids: Sequence[NDArray[np.integer]],
    sites: Mapping[str, str],
    batch: "_Batch",
    chunk: int,
    progress: Callable[[int], None] | None,
) -> Iterator[Part]:
    with ExitStack() as stack:
        for name, module in sites.items():
            hook = model.get_submodule(module).register_forward_hook(partial(batch.see, name))
            stack.callback(hook.remove)
        ids_BL = torch.from_numpy(np.stack(ids)).to(model.embedding.weight.device)
        for start, x_BLD, _ in chunks(model, ids_BL, most=chunk):
            if NORM in sites:
                model.norm(x_BLD)  # for its hook: `chunks` ends before it
            yield from batch.take(sites, start + x_BLD.shape[1])
            if progress is not None:
                progress(x_BLD.shape[0] * x_BLD.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """The spans that a piece of a batch touches."""

    start: int
    stop: int
    numbers: list[NDArray[np.int64]]  # of every row's spans
    bounds_BS2: NDArray[np.int64]  # counted from the piece's first token; empty ones fill the rows up

    @classmethod
    def of(cls, spans: Sequence[NDArray[np.int64]], start: int, stop: int) -> Self:
        numbers = [np.flatnonzero((span_S2[:, 0] < stop) & (span_S2[:, 1] > start)) for span_S2 in spans]
        bounds_BS2 = np.zeros((len(spans), max(map(len, numbers)), 2), dtype=np.int64)
        for row, (span_S2, some) in enumerate(zip(spans, numbers, strict=True)):
            bounds_BS2[row, : len(some)] = span_S2[some].clip(start, stop) - start
        return cls(start, stop, numbers, bounds_BS2)


class _Batch:
    """A batch under way: what its hooks saw of the piece that runs, and the spans that are not yet whole."""

    def __init__(self, spans: Sequence[NDArray[np.int64]], pooling: Pooling) -> None:
        self._spans = spans
        self._pooling = pooling
        self._start = 0  # of the piece that runs
        self._piece = _Piece(0, 0, [], np.zeros((0, 0, 2), np.int64))
        self._seen: dict[str, Tensor] = {}
        self._open: dict[tuple[int, int], NDArray[np.float64]] = {}

    def see(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Keep what is wanted of a module's output; a piece that did not fit and runs again in halves overwrites it."""
        x_BLD: Tensor = output[0] if isinstance(output, tuple) else output
        if self._pooling is Pooling.PER_BASE:
            self._seen[name] = _wide(x_BLD.cpu())
            return
        bounds_BS2 = self._touch(self._start, self._start + x_BLD.shape[1]).bounds_BS2
        if bounds_BS2.shape[1]:
            self._seen[name] = _reduce(x_BLD, bounds_BS2, self._pooling)

    def take(self, names: Iterable[str], stop: int) -> Iterator[Part]:
        """What is done now that the piece has run; the next one starts at `stop`."""
        start, self._start = self._start, stop
        seen = [self._seen.pop(name) for name in names if name in self._seen]
        if not seen:
            return
        # layers may lie on several devices; all go to the host in one copy
        values_BSND = fetched(torch.stack([part.to(seen[0].device) for part in seen], dim=2))
        if self._pooling is Pooling.PER_BASE:
            yield from (Part(row=row, first=start, values=values) for row, values in enumerate(values_BSND))
            return
        for row, numbers in enumerate(self._touch(start, stop).numbers):
            for number, values_ND in zip(numbers.tolist(), values_BSND[row], strict=False):
                if (done_ND := self._add(row, number, values_ND, stop)) is not None:
                    yield Part(row=row, first=number, values=done_ND[None])

    def _touch(self, start: int, stop: int) -> "_Piece":
        if (self._piece.start, self._piece.stop) != (start, stop):
            self._piece = _Piece.of(self._spans, start, stop)
        return self._piece

    def _add(self, row: int, number: int, values_ND: NDArray[np.float32], stop: int) -> NDArray[np.float32] | None:
        """Add a piece's share to a span; what it comes to, if that was the last."""
        mean = self._pooling is not Pooling.MAX
        start, end = self._spans[row][number]
        before_ND = self._open.pop((row, number), None)
        if before_ND is not None:
            total_ND = before_ND + values_ND if mean else np.maximum(before_ND, values_ND)
        else:
            total_ND = values_ND if end <= stop else values_ND.astype(np.float64)
        if end > stop:
            self._open[row, number] = total_ND
            return None
        return (total_ND / np.float32(end - start) if mean else total_ND).astype(np.float32, copy=False)


def _reduce(x_BLD: Tensor, bounds_BS2: NDArray[np.int64], pooling: Pooling) -> Tensor:
    """The sums, or maxima, over spans of the rows, [B, S, D], float32 or better; nothing of what lies outside them."""
    taken = bounds_BS2[bounds_BS2[..., 0] < bounds_BS2[..., 1]]
    first, last = int(taken[:, 0].min()), int(taken[:, 1].max())
    wide_BLD = _wide(x_BLD[:, first:last])
    place_L = torch.arange(first, last, device=x_BLD.device)
    step = 1 if pooling is Pooling.MAX else max(1, _MASK_ENTRIES // (len(x_BLD) * (last - first)))
    reduced = []
    for some_BS2 in torch.from_numpy(bounds_BS2).to(x_BLD.device).split(step, dim=1):
        inside_BSL = (place_L >= some_BS2[..., :1]) & (place_L < some_BS2[..., 1:])
        if pooling is Pooling.MAX:
            reduced.append(wide_BLD.masked_fill(~inside_BSL[:, 0, :, None], -torch.inf).amax(1, keepdim=True))
        else:
            reduced.append(torch.bmm(inside_BSL.to(wide_BLD.dtype), wide_BLD))
    return torch.cat(reduced, dim=1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _member(kind: type[Choice], name: str, value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise Sh2Error(f"{name} must be one of {', '.join(kind)}, not `{value}`") from None
