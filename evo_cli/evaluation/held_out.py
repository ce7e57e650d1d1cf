"""Sequences to measure on, and a model's bits per base of them: either strand, as it is, learning on the way, or with a
memory of other sequences that it copies from."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.copying import Trust, copied_log_probs, learn_trust
from data.errors import DataError
from data.reader import read_records
from data.sequence import IS_BASE, reverse_complement, to_upper_dna
from data.store import Split, TokenStore
from evo_cli.outputs.picture import blank, entitle, save

if TYPE_CHECKING:
    from sh2.model import StripedHyena2

Bases = NDArray[np.uint8]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_BINS = 400
_FOUR = b"ACGT"  # in the order that a copy model takes them in


class Strand(StrEnum):
    """Which way a sequence is read."""

    FORWARD = "forward"
    REVERSE = "reverse"


def read_stretches(path: Path, split: str) -> list[Bases]:
    """The bases of a split of a token store, or of all records of a FASTA or GenBank file, a contiguous stretch each.

    They are upper-cased, with U as T.

    Raises:
        DataError: there is no such split, or no A, C, G or T in what is read.
    """
    if is_store(path):
        with TokenStore(path) as store:
            stretches = [to_upper_dna(stretch) for stretch in _of_store(store, split)]
        what, hint = f"the {split} split holds", "prepare the store with a larger fraction, or from other sequences"
    else:
        texts = [to_upper_dna(record.sequence) for record in read_records(path)]
        stretches = [np.frombuffer(text, dtype=np.uint8) for text in texts]
        what, hint = "its records hold", "give sequences of DNA or RNA"
    if not sum(int(IS_BASE[stretch].sum()) for stretch in stretches):
        raise DataError(f"{path}: {what} no A, C, G or T").hint(hint)
    return [stretch for stretch in stretches if stretch.size]


def copies_among(stretches: list[Bases], others: list[Bases]) -> int:
    """How many stretches are, on either strand, one of the others."""
    held = {sha256(other.tobytes()).digest() for other in others}
    return sum(
        not held.isdisjoint({sha256(text).digest(), sha256(reverse_complement(text)).digest()})
        for text in (stretch.tobytes() for stretch in stretches)
    )


def is_store(path: Path) -> bool:
    """Whether a file is HDF5, as token stores are."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_HDF5)) == _HDF5


def _of_store(store: TokenStore, split: str) -> Iterator[Bases]:
    if split not in list(Split):
        raise DataError(f"unknown split `{split}`").hint(f"known splits: {', '.join(Split)}")
    segments = store.segments(split)
    if not len(segments):
        raise DataError(f"{store.path}: the {split} split is empty").hint("prepare the store with a larger fraction")
    for segment in segments:
        yield store.read(int(segment["start"]), int(segment["end"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How sequences are read: windows of `context` tokens, `stride` of them new; lr above 0 learns on the way, with
    `mirror` from the other strand of what was read too; a memory is copied from beside (`data.copying`), and trusted as
    was learned before (`trusting`), or is learned on the way."""

    context: int
    stride: int
    lr: float = 0.0
    mirror: bool = False
    memory: tuple[Bases, ...] = ()
    trust: Trust | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bits:
    """Bits of the A, C, G and T of sequences, in the order they were read in."""

    total: float
    bases: int
    curve: NDArray[np.float64]  # bits per base of so many equal parts

    @property
    def per_base(self) -> float:
        return self.total / self.bases


def measure(
    model: "StripedHyena2", stretches: list[Bases], strand: Strand, reading: Reading, progress: Callable[[int], None]
) -> Bits:
    """Predict every base of the stretches in turn; a model that learns comes out as it was."""
    turn = bytes if strand is Strand.FORWARD else reverse_complement
    ordered = stretches if strand is Strand.FORWARD else stretches[::-1]
    texts = [np.frombuffer(turn(stretch.tobytes()), dtype=np.uint8) for stretch in ordered]
    with _restored(model, changes=reading.lr > 0):
        log_probs = [_log_probs(model, text, reading, progress) for text in texts]
    if reading.memory:
        whole, log_probs_L4 = _as_one(texts, log_probs)
        copied = copied_log_probs(reading.memory, whole, log_probs_L4, trust=reading.trust, progress=progress)
        begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
        log_probs = [copied[begin : begin + len(text)] for begin, text in zip(begins[:-1], texts, strict=True)]
    bits = [found[IS_BASE[text]] / -math.log(2) for text, found in zip(texts, log_probs, strict=True)]
    all_bits = np.concatenate(bits)
    parts = np.array_split(all_bits, min(_BINS, len(all_bits)))
    return Bits(
        total=float(all_bits.sum(dtype=np.float64)),
        bases=len(all_bits),
        curve=np.array([part.mean() for part in parts]),
    )


def trusting(
    model: "StripedHyena2", reading: Reading, left: list[Bases], held: list[Bases], progress: Callable[[int], None]
) -> Reading:
    """A reading that learns nothing: how far to trust its memory it has learned from what was held out of that."""
    whole, log_probs_L4 = _as_one(held, [_log_probs(model, window, reading, progress) for window in held])
    return replace(reading, trust=learn_trust(left, whole, log_probs_L4, progress=progress))


def _log_probs(
    model: "StripedHyena2", text: Bases, reading: Reading, progress: Callable[[int], None]
) -> NDArray[np.float32]:
    """Of every base, float32 [L]; of A, C, G and T at every place, [L, 4], for a copy model beside it."""
    from sh2.reading.dynamic import dynamic_log_probs
    from sh2.reading.perplexity import sliding_log_probs

    among = _FOUR if reading.memory else None
    if not reading.lr:
        return sliding_log_probs(
            model, text, context=reading.context, stride=reading.stride, among=among, progress=progress
        )
    import torch

    on_gpu = model.embedding.weight.is_cuda
    return dynamic_log_probs(
        model,
        text,
        context=reading.context,
        stride=reading.stride,
        lr=reading.lr,
        mirror=_mirror if reading.mirror else None,
        autocast=torch.bfloat16 if on_gpu else None,
        among=among,
        progress=progress,
    )


def _as_one(texts: list[Bases], log_probs: list[NDArray[np.float32]]) -> tuple[Bases, NDArray[np.float32]]:
    """Texts as one, and the log-probabilities of all four bases, for a copy model: it learns from one for the next.

    Between them is something that is no base.
    """
    between = np.frombuffer(b"N", dtype=np.uint8)
    none = np.zeros((1, len(_FOUR)), dtype=np.float32)
    whole = np.concatenate([between[:0], *(part for text in texts for part in (text, between))])
    return whole, np.concatenate([none[:0], *(part for found in log_probs for part in (found, none))])


def _mirror(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return reverse_complement(ids.astype(np.uint8)).astype(np.int64)


@contextmanager
def _restored(model: "StripedHyena2", *, changes: bool) -> Iterator[None]:
    """Give the model its weights back in the end, if they change."""
    before = {name: value.clone() for name, value in model.state_dict().items()} if changes else {}
    try:
        yield
    finally:
        if changes:
            model.load_state_dict(before)


def plot_bits(curves: dict[str, Bits], picture: Path, *, title: str) -> None:
    """Draw bits per base along the sequences, and the mean of all before; atomically, as PNG."""
    figure = blank(8, 4)
    axes = figure.subplots()
    for (name, bits), colour in zip(curves.items(), ("#3b6ea5", "#d1602f"), strict=False):
        x = (np.arange(len(bits.curve)) + 0.5) * bits.bases / len(bits.curve) / 1e3
        axes.plot(x, bits.curve, color=colour, lw=0.7, alpha=0.45)
        running = bits.curve.cumsum() / np.arange(1, len(bits.curve) + 1)
        axes.plot(x, running, color=colour, lw=1.6, label=f"{name}: {bits.per_base:.4f}, mean of all before")
    axes.axhline(2.0, color="#333333", lw=0.8, ls=":", label="2 bits: four equal bases")
    axes.set(xlabel="bases read, kb", ylabel="bits per base")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, facecolor="white", edgecolor="none", framealpha=0.85)
    entitle(figure, title)
    save(figure, picture)
