"""The data of a training run: one token store, one made of sequence files, or several stores mixed by weights."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data.mixture import Mixture
from data.prepare import PrepareOptions, prepare
from data.source import STDIN
from data.store import Split, TokenStore, is_store
from data.windows import WindowOptions, Windows
from evo_cli.inference import warn
from evo_cli.progress import progress_bar
from evo_cli.training.config import RunConfig
from sh2.errors import Sh2Error
from sh2.train.config import TrainConfig
from sh2.train.folder import RunFolder

# marks a soft-masked base as one to count, without changing a weighted sum in float32
_NO_WEIGHT = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A store, and what it gives: `share` of the training windows."""

    store: TokenStore
    share: float
    train: Windows
    valid: Windows | None

    @property
    def bases(self) -> int:
        """Bases to train on."""
        return _bases(self.store)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """The data of a run, open."""

    parts: tuple[Part, ...]
    train: Windows | Mixture
    valid: Windows | Mixture | None
    identity: str  # checksum of the tokens, of what is for training and validation, and of the shares

    def describe(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {
            "identity": self.identity,
            "train_windows": len(self.train),
            "valid_windows": 0 if self.valid is None else len(self.valid),
            "stores": [
                {
                    "store": str(part.store.path),
                    "share": part.share,
                    "train_windows": len(part.train),
                    "tokens_sha256": part.store.checksum,
                    "sources": part.store.metadata["sources"],
                }
                for part in self.parts
            ],
        }

    def announce(self, train: TrainConfig) -> Iterator[str]:
        """What a person is told of the data, in lines."""
        valid = f"{len(self.valid):,} for validation" if self.valid is not None else "none for validation"
        what = str(self.parts[0].store.path) if len(self.parts) == 1 else f"a mixture of {len(self.parts)} stores"
        yield f"data: {what}, {len(self.train):,} windows of {train.length:,} bp an epoch, {valid}"
        if len(self.parts) == 1:
            return
        wanted = train.steps * train.windows_per_step
        for part in self.parts:
            epochs = wanted * part.share / len(part.train)
            yield (
                f"  {part.share:6.1%} from {part.store.path}: {len(part.train):,} windows an epoch, "
                f"{epochs:,.2f} epochs in {train.steps:,} steps"
            )


@contextmanager
def open_data(config: RunConfig, folder: RunFolder, *, prepared: bool = False) -> Iterator[RunData]:
    """Open the stores given as input, or prepare one from the sequence files given, in the run's folder.

    Args:
        prepared: another process has done so just now.

    Raises:
        DataError: an input cannot be read, or nothing in it is for training.
        Sh2Error: there is no input, or a store beside other inputs.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(TokenStore(path)) for path in _store_paths(config, folder, prepared)]
        weights = config.weights if len(stores) > 1 and config.weights else [float(_bases(store)) for store in stores]
        train, seed = config.train, config.train.seed
        options = WindowOptions(
            length=train.length,
            seed=seed,
            reverse_complement=train.reverse_complement,
            lower_case_weight=train.lower_case_weight,
        )
        windows = [Windows(store, Split.TRAIN, options) for store in stores]
        held_out = [_held_out(store, train) for store in stores]
        some = [number for number, valid in enumerate(held_out) if valid is not None]
        parts = zip(stores, weights, windows, held_out, strict=True)
        yield RunData(
            parts=tuple(
                Part(store=store, share=weight / sum(weights), train=of_train, valid=of_valid)
                for store, weight, of_train, of_valid in parts
            ),
            train=_mixed(windows, weights, seed),
            valid=_mixed([valid for valid in held_out if valid is not None], [weights[number] for number in some], 0),
            identity=_identity(stores, weights),
        )


def _mixed(windows: Sequence[Windows], weights: Sequence[float], seed: int) -> Any:
    if len(windows) > 1:
        return Mixture(windows, weights, seed=seed)
    return windows[0] if windows else None


def _held_out(store: TokenStore, train: TrainConfig) -> Windows | None:
    if not (train.valid_windows and len(store.segments(Split.VALID))):
        return None
    options = WindowOptions(
        length=train.length,
        seed=0,
        reverse_complement=False,
        lower_case_weight=train.lower_case_weight or _NO_WEIGHT,
    )
    return Windows(store, Split.VALID, options)


def _bases(store: TokenStore) -> int:
    segments = store.segments(Split.TRAIN)
    return int((segments["end"] - segments["start"]).sum())


def _store_paths(config: RunConfig, folder: RunFolder, prepared: bool) -> list[Path]:
    if not config.inputs:
        raise Sh2Error("no input is given").hint("give FASTA or GenBank files, or token stores (.h5)")
    if (prepared or folder.config.exists()) and folder.data.exists():
        return [folder.data]  # a resumed run goes on with the data it began with, whatever became of the files
    stores = [path for path in config.inputs if path != STDIN and path.is_file() and is_store(path)]
    if not stores and not config.weights:
        with progress_bar("preparing") as bar:
            report = prepare(
                config.inputs, folder.data, config.prepare, lambda done, total: bar.update(done, total or None)
            )
        for text in report.warnings:
            warn(text)
        return [folder.data]
    for path in config.inputs:
        if path != STDIN and not path.exists():
            raise Sh2Error(f"{path} does not exist")
        if path not in stores:
            raise Sh2Error(f"{path} is no token store: only stores can be mixed, or weighted").hint(
                "make one of it with `evo prepare INPUT... -o STORE.h5`"
            )
    plain = PrepareOptions()
    if given := [one.name for one in fields(plain) if getattr(config.prepare, one.name) != getattr(plain, one.name)]:
        raise Sh2Error(f"data field `{given[0]}` is for sequence files, and {stores[0]} is prepared already").hint(
            "leave it out, or give it to `evo prepare`"
        )
    return stores


def _identity(stores: Sequence[TokenStore], weights: Sequence[float]) -> str:
    digest = hashlib.sha256()
    for store, weight in zip(stores, weights, strict=True):
        digest.update(store.checksum.encode())
        for split in (Split.TRAIN, Split.VALID):
            digest.update(store.segments(split).tobytes())
        if len(stores) > 1:
            digest.update(repr(weight).encode())
    return digest.hexdigest()
