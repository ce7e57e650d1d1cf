"""Model folders: sharded, checked, replaced in one step; and safetensors files written as a stream."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sh2.checkpoint import folder as folder_module
from sh2.checkpoint.atomic import replacing
from sh2.checkpoint.folder import model_hash, read_model_config, read_model_tensors, write_model_folder
from sh2.checkpoint.safetensors_file import read_safetensors, write_safetensors
from sh2.checkpoint.tensors import LazyTensor
from sh2.config import DEFAULT_WINDOW, Activation, ModelConfig
from sh2.errors import Sh2Error

CONFIG = ModelConfig(
    width=16, layout="SM", num_heads=2, mlp_width=8, se_groups=4, mr_groups=4, mr_window=DEFAULT_WINDOW,
    first_activation=Activation.SILU,
)  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool]


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(7, 5, generator=generator),
        "b": torch.randn(3, generator=generator).bfloat16(),
        "t": torch.randn(4, 6, generator=generator).T,
    }


def lazily(tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def write(folder: Path, seed: int = 0, shard_bytes: int = 10**9) -> None:
    write_model_folder(folder, CONFIG, lazily(some_tensors(seed)), shard_bytes=shard_bytes)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_the_library_reads_what_is_streamed(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple]) -> None:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("stream") / "m.safetensors"
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    write_safetensors(path, lazily(tensors), {"note": "é"})
    for read in (load_file(path), {name: lazy.read() for name, lazy in read_safetensors(path).items()}):
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in read)


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3)}, tmp_path / "m.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "m.safetensors")["a"].read(), torch.arange(3))


@pytest.mark.parametrize("shard_bytes", [1, 150, 10**9])
def test_a_folder_comes_back_to_the_bit_however_it_is_sharded(tmp_path: Path, shard_bytes: int) -> None:
    write(tmp_path / "m", shard_bytes=shard_bytes)
    assert read_model_config(tmp_path / "m") == CONFIG
    read = read_model_tensors(tmp_path / "m")
    for name, tensor in some_tensors().items():
        assert torch.equal(read[name].read(), tensor)
        assert read[name].dtype == tensor.dtype
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert ("model.safetensors.index.json" in files) == (shard_bytes < 10**9)
    if shard_bytes == 1:
        assert files[1:4] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 7 * 5 * 4 + 3 * 2 + 4 * 6 * 4


def test_the_hash_depends_on_values_and_configuration_only(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", shard_bytes=1)
    write(tmp_path / "c", seed=1)
    hashes = [model_hash(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 64


def test_the_header_says_which_format_and_version(tmp_path: Path) -> None:
    write(tmp_path / "m")
    data = (tmp_path / "m" / "model.safetensors").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert metadata["evo_format"] == "evo-sh2"
    assert metadata["evo_format_version"] == "1"
    assert "evo_version" in metadata


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    write(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Sh2Error, match=r"m/model\.safetensors is not a complete safetensors file"):
        read_model_tensors(tmp_path / "m")


def test_a_changed_byte_is_found_and_its_tensor_named(tmp_path: Path) -> None:
    write(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    tensors = read_model_tensors(tmp_path / "m")
    with pytest.raises(Sh2Error, match=r"model\.safetensors is damaged: `b` does not match its checksum"):
        tensors["b"].read()
    tensors["w"].read()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "config.json").unlink(), r"config\.json does not exist"),
        (lambda m: (m / "config.json").write_text("{"), r"config\.json is not readable as JSON"),
        (lambda m: (m / "config.json").write_text("[]"), r"config\.json holds a list, not an object"),
        (lambda m: (m / "config.json").write_text("{}"), r"config\.json is not a model configuration"),
        (
            lambda m: (m / "config.json").write_text('{"format": "evo-sh2", "format_version": 9, "model": {}}'),
            "format version 9; this evo reads version 1",
        ),
        (
            lambda m: (m / "config.json").write_text('{"format": "evo-sh2", "format_version": 1, "model": {"a": 1}}'),
            r"config\.json: unknown model field `a`",
        ),
        (
            lambda m: (m / "model-00002-of-00003.safetensors").unlink(),
            r"model-00002-of-00003\.safetensors cannot be read: No such",
        ),
        (
            lambda m: (
                os.replace(m / "model-00002-of-00003.safetensors", m / "model-00001-of-00003.safetensors")
                or (m / "model-00002-of-00003.safetensors").symlink_to("model-00001-of-00003.safetensors")
            ),
            r"model-00001-of-00003\.safetensors has no tensor `w`",
        ),
    ],
)
def test_damage_to_a_folder_is_named(tmp_path: Path, damage: object, message: str) -> None:
    write(tmp_path / "m", shard_bytes=1)
    damage(tmp_path / "m")  # type: ignore[operator]
    with pytest.raises(Sh2Error, match=message):
        model_hash(tmp_path / "m")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_model_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr("sh2.checkpoint.atomic._exchange", lambda *_: False)
    (tmp_path / "m").mkdir()
    write(tmp_path / "m", shard_bytes=1)
    write(tmp_path / "m", seed=1)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(read_model_tensors(tmp_path / "m")["w"].read(), some_tensors(1)["w"])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    write(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(Sh2Error, match=r"m exists and holds `notes\.txt`, which is no part of a model folder"):
        write(tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(Sh2Error, match="other exists and holds files"):
        write(tmp_path / "other")
    with pytest.raises(Sh2Error, match=r"notes\.txt is a file; a model is written as a folder"):
        write(tmp_path / "m" / "notes.txt")


def test_an_error_half_way_leaves_the_old_model_and_nothing_else(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise Sh2Error("no more")

    write(tmp_path / "m")
    before = model_hash(tmp_path / "m")
    broken = {**lazily(some_tensors(1)), "z": LazyTensor((1,), torch.float32, fail)}
    with pytest.raises(Sh2Error, match="no more"):
        write_model_folder(tmp_path / "m", CONFIG, broken)
    assert model_hash(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def _write_for_ever(folder: Path) -> None:
    seed = 0
    while True:
        seed += 1
        write(folder, seed=seed % 2)


def test_a_kill_at_any_moment_leaves_a_complete_model(tmp_path: Path) -> None:
    write(tmp_path / "m")
    allowed = {model_hash(tmp_path / "m")}
    write(tmp_path / "n", seed=1)
    allowed.add(model_hash(tmp_path / "n"))
    for number in range(8):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path / "m",))
        process.start()
        process.join(0.01 + 0.013 * number)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
        assert model_hash(tmp_path / "m") in allowed
    write(tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]  # leftovers are gone


def test_what_a_kill_between_two_renames_left_is_put_back(tmp_path: Path) -> None:
    gone = 2**22 + 1  # above the largest process number
    write(tmp_path / "m[1]")
    before = model_hash(tmp_path / "m[1]")
    os.replace(tmp_path / "m[1]", tmp_path / f".m[1].previous-{gone}")
    (tmp_path / f".m[1].partial-{gone}").mkdir()
    (tmp_path / f".m[1].partial-{os.getppid()}").mkdir()  # of a process at work
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "m[1]"):
        raise ZeroDivisionError
    assert model_hash(tmp_path / "m[1]") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".m[1].partial-{os.getppid()}", "m[1]"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Sh2Error, match=r"cannot write .*file/m: "), replacing(tmp_path / "file" / "m"):
        pass


def test_the_version_is_known_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        folder_module, "version", lambda name: (_ for _ in ()).throw(folder_module.PackageNotFoundError)
    )
    assert folder_module.evo_version() == "unknown"
