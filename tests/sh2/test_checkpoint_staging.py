"""Tensors on their way from files: several at once, in order, and as they were."""

from pathlib import Path
from threading import Barrier

import pytest
import torch

from sh2.checkpoint.safetensors_file import read_safetensors, write_safetensors
from sh2.checkpoint.staging import copied, map_tensors
from sh2.checkpoint.tensors import LazyTensor, tensor_bytes
from sh2.errors import Sh2Error

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PIECE = 16 << 20  # bytes that go to a GPU at once


def lazy(count: int) -> dict[str, LazyTensor]:
    return {f"t{number}": LazyTensor.of(torch.tensor(number)) for number in range(count)}


def test_results_come_in_order_though_several_tensors_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = Barrier(3, timeout=30)  # one alone would wait in vain

    def work(name: str, tensor: LazyTensor) -> tuple[str, int]:
        together.wait()
        return name, int(tensor.read())

    assert list(map_tensors(work, lazy(9))) == [(f"t{number}", number) for number in range(9)]


def test_the_first_error_is_raised_and_what_has_not_begun_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    begun = []

    def work(name: str, tensor: LazyTensor) -> int:
        begun.append(name)
        if name in ("t3", "t4"):
            raise ValueError(name)
        return int(tensor.read())

    with pytest.raises(ValueError, match="t3"):
        list(map_tensors(work, lazy(100_000)))
    assert len(begun) < 100_000


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.int64])
def test_a_copy_holds_the_numbers_and_nothing_of_the_source(
    device: str, dtype: torch.dtype, source: torch.dtype
) -> None:
    whole = torch.randn(37, 11, generator=torch.Generator().manual_seed(0)).mul(9).to(source)
    for tensor in (whole, whole.T, whole[::2, 1:4], whole[:0], whole[3, 5]):
        copy = copied(LazyTensor.of(tensor), torch.device(device), dtype)
        assert (copy.device.type, copy.dtype, copy.shape) == (device, dtype, tensor.shape)
        assert copy.is_contiguous()
        assert torch.equal(copy.cpu().float(), tensor.to(dtype).float())
        if tensor.numel():
            assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [0, 1, 1001])
def test_what_a_file_holds_is_read_piece_by_piece(tmp_path: Path, device: str, size: int) -> None:
    tensors = {"a": torch.randn(size), "b": torch.randn(3, size).bfloat16(), "c": torch.tensor(7)}
    write_safetensors(tmp_path / "t", {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, {})
    for name, lazy in read_safetensors(tmp_path / "t").items():
        buffer = bytearray(256)
        assert lazy.pieces is not None
        found = b"".join(bytes(buffer[:count]) for count in lazy.pieces(memoryview(buffer)))
        assert found == bytes(tensor_bytes(tensors[name]))
        assert torch.equal(copied(lazy, torch.device(device), lazy.dtype).cpu(), tensors[name])


def test_a_file_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write_safetensors(path, {"a": LazyTensor.of(torch.randn(1000))}, {})
    lazy, whole = read_safetensors(path)["a"], path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Sh2Error, match=r"t is damaged: `a` does not match its checksum"):
        copied(lazy, torch.device("cpu"), torch.float32)
    path.write_bytes(whole[:-1])
    with pytest.raises(Sh2Error, match=r"t was cut short while it was read"):
        copied(lazy, torch.device("cpu"), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_a_piece_arrives_whole_from_every_thread(dtype: torch.dtype) -> None:
    sizes = [PIECE // 4 - 1, PIECE // 4, PIECE // 4 + 1, 3 * PIECE // 4 + 7]
    sources = {f"{size} {turn}": torch.randn(size) for size in sizes for turn in range(4)}
    tensors = {name: LazyTensor.of(tensor) for name, tensor in sources.items()}
    copies = map_tensors(lambda _, tensor: copied(tensor, torch.device("cuda"), dtype), tensors)
    for tensor, copy in zip(sources.values(), copies, strict=True):
        assert torch.equal(copy.cpu(), tensor.to(dtype))
