"""Files of torch.save: whole, in parts, damaged, hostile; and written one tensor at a time."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sh2.checkpoint.tensors import LazyTensor, tensor_bytes
from sh2.checkpoint.torch_file import read_torch_file, read_torch_parts, write_torch_file
from sh2.errors import Sh2Error


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(6, 5, generator=generator)
    return {
        "a": wide,
        "view": wide[1:3],  # shares the storage of `a`
        "transposed": wide.T,
        "half": torch.randn(3, generator=generator).bfloat16(),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "ids": torch.arange(5),
        "every other of two": torch.arange(2.0)[::2],
    }


def cut(path: Path, count: int) -> list[Path]:
    data = path.read_bytes()
    step = -(-len(data) // count)
    parts = [path.with_name(f"{path.name}.part{number}") for number in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(data[number * step : (number + 1) * step])
    path.unlink()
    return parts


def assert_same(read: dict[str, LazyTensor], expected: dict[str, torch.Tensor]) -> None:
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        lazy = read[name]
        assert (lazy.shape, lazy.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(lazy.read(), tensor), name


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    torch.save(some_tensors(), tmp_path / "m.pt")
    assert_same(read_torch_file(tmp_path / "m.pt"), some_tensors())


@pytest.mark.parametrize("count", [1, 2, 3, 11, 40])
def test_parts_are_read_without_joining_them(tmp_path: Path, count: int) -> None:
    torch.save(some_tensors(), tmp_path / "m.pt")
    assert_same(read_torch_parts(cut(tmp_path / "m.pt", count)), some_tensors())
    assert len(list(tmp_path.iterdir())) == count


@pytest.mark.parametrize("count", [1, 3])
def test_what_lies_in_one_piece_is_read_in_buffers(tmp_path: Path, count: int) -> None:
    torch.save(some_tensors(), tmp_path / "m.pt")
    whole = read_torch_file(tmp_path / "m.pt")
    read = whole if count == 1 else read_torch_parts(cut(tmp_path / "m.pt", count))
    assert [name for name, lazy in read.items() if lazy.pieces is None and lazy.nbytes] == ["transposed"]
    buffer = memoryview(bytearray(16))
    for name, lazy in read.items():
        if lazy.pieces is not None:
            found = b"".join(bytes(buffer[:size]) for size in lazy.pieces(buffer))
            assert found == bytes(tensor_bytes(some_tensors()[name])), name


def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    torch.save(some_tensors(), tmp_path / "m.pt")
    read = read_torch_file(tmp_path / "m.pt")
    with (tmp_path / "m.pt").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(Sh2Error, match=r"m\.pt was cut short while it was read"):
        [lazy.read() for lazy in read.values()]


def repacked(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    with zipfile.ZipFile(path) as old:
        entries = change([(entry.filename, old.read(entry)) for entry in old.infolist()])
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries:
            new.writestr(name, data)


def from_a_gpu(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Say that every storage lay on a GPU, in an archive from before torch could compute places."""
    there, here = b"X\x06\x00\x00\x00cuda:0", b"X\x03\x00\x00\x00cpu"
    assert any(here in data for _, data in entries)
    return [(name, data.replace(here, there)) for name, data in entries if not name.endswith(".format_version")]


def test_a_file_saved_from_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    torch.save(some_tensors(), tmp_path / "m.pt")
    repacked(tmp_path / "m.pt", from_a_gpu)
    assert_same(read_torch_file(tmp_path / "m.pt"), some_tensors())
    assert_same(read_torch_parts(cut(tmp_path / "m.pt", 2)), some_tensors())


@pytest.mark.parametrize("order", [list, sorted, lambda entries: sorted(entries, reverse=True)])
def test_an_archive_packed_by_another_program_is_read_right_or_not_at_all(
    tmp_path: Path, order: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]
) -> None:
    many = {f"t{number}": torch.full((16,), float(number)) for number in range(12)}  # all of one size
    torch.save(many, tmp_path / "m.pt")
    repacked(tmp_path / "m.pt", order)
    assert_same(read_torch_file(tmp_path / "m.pt"), many)
    with pytest.raises(Sh2Error, match=r"were not laid out by torch\.save") as caught:
        read_torch_parts(cut(tmp_path / "m.pt", 2))
    assert "cat NAME.pt.part0" in caught.value.__notes__[0]


def test_a_state_dict_of_parameters_is_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    torch.save({"module": dict(layer.named_parameters())}, tmp_path / "m.pt")
    torch.save(layer.state_dict(), tmp_path / "n.pt")
    for name in ("m.pt", "n.pt"):
        assert_same(
            read_torch_file(tmp_path / name), {key: value.detach() for key, value in layer.state_dict().items()}
        )
        read = read_torch_parts(cut(tmp_path / name, 2))
        assert torch.equal(read["weight"].read(), layer.weight)


@pytest.mark.parametrize("wrapper", ["module", "state_dict"])
def test_tensors_are_found_inside_a_wrapper(tmp_path: Path, wrapper: str) -> None:
    torch.save({wrapper: some_tensors(), "iteration": 3}, tmp_path / "m.pt")
    assert_same(read_torch_file(tmp_path / "m.pt"), some_tensors())


@pytest.mark.parametrize(
    ("blob", "content"),
    [(io.BytesIO(b"fp8 scales"), b"fp8 scales"), (b"fp8 scales", b"fp8 scales"), (None, None)],
    ids=["BytesIO", "bytes", "None"],
)
def test_extra_state_is_let_in_as_bytes(tmp_path: Path, blob: object, content: bytes | None) -> None:
    name = "blocks.0.projections._extra_state"
    torch.save({**some_tensors(), name: blob}, tmp_path / "m.pt")
    state = {} if content is None else {name: torch.tensor(list(content), dtype=torch.uint8)}
    assert_same(read_torch_file(tmp_path / "m.pt"), some_tensors() | state)
    assert_same(read_torch_parts(cut(tmp_path / "m.pt", 3)), some_tensors() | state)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("hidden_in", ["value", "extra state"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, hidden_in: str) -> None:
    target = tmp_path / "executed"
    name = "a" if hidden_in == "value" else "a._extra_state"
    torch.save({**some_tensors(), name: Hostile(target)}, tmp_path / "m.pt")
    with pytest.raises(Sh2Error, match=r"m\.pt holds more than tensors: `\S+` is not loaded.*nothing .* executed"):
        read_torch_file(tmp_path / "m.pt")
    with pytest.raises(Sh2Error, match="holds more than tensors"):
        read_torch_parts(cut(tmp_path / "m.pt", 2))
    assert not target.exists()


def test_the_hostile_file_would_do_harm(tmp_path: Path) -> None:
    """The test above proves nothing unless plain unpickling does execute it."""
    pickle.loads(pickle.dumps(Hostile(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [0, 10, 600, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.pt"
    torch.save(some_tensors(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Sh2Error, match=r"m\.pt is not a complete file of torch\.save"):
        read_torch_file(path)
    with pytest.raises(Sh2Error, match=r"m\.pt\.part0 and the 1 parts after it is not a complete file"):
        read_torch_parts(cut(path, 2))


def test_the_old_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(some_tensors(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(Sh2Error, match=r"not a complete file of torch\.save") as caught:
        read_torch_file(tmp_path / "m.pt")
    assert "older than torch 1.6" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "holds a list, not a dict of tensors"), ({"steps": 4}, "`steps` is a int, not a tensor")],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(Sh2Error, match=message):
        read_torch_file(tmp_path / "m.pt")


def test_writing_one_tensor_at_a_time_gives_a_file_of_torch_save(tmp_path: Path) -> None:
    expected = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    counts: list[int] = []
    write_torch_file(
        tmp_path / "m.pt", {name: LazyTensor.of(tensor) for name, tensor in expected.items()}, counts.append
    )
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert counts == [tensor.nbytes for tensor in expected.values()]
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        assert archive.testzip() is None  # checksums too, which torch does not look at
