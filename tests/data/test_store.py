"""The token store as its readers see it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.errors import DataError
from data.prepare import PrepareOptions, prepare
from data.store import SEGMENT, Split, TokenStore, is_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    (folder / "a.fa").write_text(">a\n" + "ACGTN" * 2000 + "\n>b\nacgt\n")
    return prepare([folder / "a.fa"], folder / "store.h5", PrepareOptions()).output


def test_reading(made: Path) -> None:
    with TokenStore(made) as store:
        assert store.read(3, 7).tobytes() == b"TNAC"
        assert store.read(5, 5).shape == (0,)
        assert store.read(0, len(store.tokens)).dtype == np.uint8
        assert len(store.records) == len(store.records.names) == 2
        assert store.segments("train").dtype == SEGMENT
        assert store.segments(Split.TEST).shape == (0,)
        assert store.tags.shape == (0,)
        with pytest.raises(DataError, match=r"tokens -1\.\.2 are not within 0\.\.10006"):
            store.read(-1, 2)
        with pytest.raises(DataError, match=r"tokens 5\.\.10007 are not within"):
            store.read(5, 10007)
        with pytest.raises(IndexError):
            store.records.names[2]
    store.close()
    assert is_store(made)


def test_verify_finds_damage(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(made, copy)
    with h5py.File(copy, "a") as file:
        file["tokens"][77] = ord("C")
    with TokenStore(copy) as store, pytest.raises(DataError, match=r"copy\.h5: damaged: the tokens' sha256 is"):
        store.load()


def test_paths_that_are_no_stores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.h5: no such token store"):
        TokenStore(tmp_path / "none.h5")
    with pytest.raises(DataError, match="is a folder, not a token store"):
        TokenStore(tmp_path)
    text = tmp_path / "a.txt"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"a\.txt: not a token store: "):
        TokenStore(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match=r"other\.h5: an HDF5 file, but not a token store"):
        TokenStore(other)
    assert not is_store(text)
    assert not is_store(other)
    assert not is_store(tmp_path / "none.h5")


def test_stores_of_other_versions_or_in_pieces(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(made, copy)
    with h5py.File(copy, "a") as file:
        del file["tokens"]
    with pytest.raises(DataError, match=r"a damaged token store: .*tokens"):
        TokenStore(copy)
    with h5py.File(copy, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(DataError, match="token store of version 99; this evo reads version 1"):
        TokenStore(copy)
    assert is_store(copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file["metadata"].__setitem__((), "{"), "a damaged token store: Expecting"),
        (lambda file: file["metadata"].__setitem__((), "{}"), "a damaged token store: metadata have no"),
        (lambda file: file.attrs.__delitem__("version"), "a damaged token store: .*version"),
        (lambda file: file["segments"].__delitem__("train"), "a damaged token store: .*train"),
    ],
)
def test_a_damaged_store_is_named(
    made: Path, tmp_path: Path, damage: Callable[[h5py.File], None], message: str
) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(made, copy)
    with h5py.File(copy, "a") as file:
        damage(file)
    with pytest.raises(DataError, match=rf"copy\.h5: {message}"), TokenStore(copy) as store:
        store.segments("train")
