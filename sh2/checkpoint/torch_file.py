"""Files of `torch.save`, read and written one tensor at a time. Nothing in a file is ever executed.

A whole file is memory-mapped. A file that was split into parts is read through a seekable view of its parts: torch
tells where in it every tensor lies (loading under a fake mode reads no values), so neither a joined copy on the disk
nor the whole model in memory is needed. Writing lays out the file first, with room for the values, and fills it in.
"""

import io
import mmap
import os
import pickle
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.serialization import safe_globals, set_default_mmap_options, skip_data

from sh2.checkpoint.tensors import LazyTensor, Tensors
from sh2.errors import Sh2Error

# published files keep the FP8 state of some layers as an io.BytesIO, which is bytes with a position; nothing else
# beyond the tensors and containers that torch allows itself is let in
_ALLOWED: list[Any] = [io.BytesIO]
_WRAPPERS = ("module", "state_dict", "model")  # what training code puts its tensors under
_CENTRAL_ENTRY = b"PK\x01\x02"
_DATA_DESCRIPTOR = b"PK\x07\x08"


def read_torch_file(path: Path) -> dict[str, LazyTensor]:
    """Open a file of `torch.save`, memory-mapped.

    Raises:
        Sh2Error: the file is truncated, damaged, in the format before torch 1.6, or holds more than tensors.
    """
    loaded = _load(path, str(path), mapped=True)
    return {name: LazyTensor.of(tensor) for name, tensor in _tensors(loaded, str(path)).items()}


def read_torch_parts(paths: Sequence[Path]) -> dict[str, LazyTensor]:
    """Open a file of `torch.save` that was cut into parts, given in order; the parts stay as they are.

    Raises:
        Sh2Error: as `read_torch_file`.
    """
    label = f"{paths[0]} and the {len(paths) - 1} parts after it"
    joined: Any = io.BufferedReader(_Parts(paths))
    with FakeTensorMode():
        loaded = _load(joined, label, mapped=False)
    tensors = _tensors(loaded, label)
    fakes = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, FakeTensor)}
    _check_offsets(joined, fakes.values(), label)
    turn = Lock()  # a position is one for all threads
    return {
        name: _stored(joined, turn, tensor, label) if name in fakes else LazyTensor.of(tensor)
        for name, tensor in tensors.items()
    }


def _load(file: Path | BinaryIO, label: str, *, mapped: bool) -> object:
    try:
        with safe_globals(_ALLOWED):
            return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"`{culprit[1]}`" if culprit else "an object"
        raise Sh2Error(
            f"{label} holds more than tensors: {what} is not loaded, and nothing in the file was executed"
        ).hint("save it again as a flat dict of tensors, or as safetensors") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise Sh2Error(f"{label} is not a complete file of torch.save: {reason}").hint(
            "it may be truncated or damaged, or older than torch 1.6: copy it again, or save it again with torch.save"
        ) from None


def _tensors(loaded: object, label: str) -> dict[str, Tensor]:
    """The flat dict of tensors in what was loaded; blobs of `_extra_state` become tensors of their bytes."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise Sh2Error(f"{label} holds a {type(loaded).__name__}, not a dict of tensors")
    tensors: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = value.detach()
        elif str(name).endswith("_extra_state") and isinstance(value, (io.BytesIO, bytes)):
            blob = value if isinstance(value, bytes) else value.getvalue()
            tensors[str(name)] = torch.tensor(bytearray(blob), dtype=torch.uint8)
        elif not str(name).endswith("_extra_state"):
            raise Sh2Error(f"{label}: `{name}` is a {type(value).__name__}, not a tensor")
    return tensors


def _offset(fake: Tensor) -> int:
    storage: Any = fake.untyped_storage()
    offset: int = storage._checkpoint_offset
    return offset


def _check_offsets(file: BinaryIO, fakes: Iterable[Tensor], label: str) -> None:
    """Compare where torch says that values lie with the archive's own directory.

    Torch computes the places on the assumption that it wrote the archive itself; one packed again by another program
    would be read from the wrong places without a word.
    """
    with zipfile.ZipFile(file) as archive:
        numbered = [(entry, re.search(r"/data/(\d+)$", entry.filename)) for entry in archive.infolist()]
        by_number = sorted((int(match[1]), entry.header_offset) for entry, match in numbered if match)
        computed = any(entry.filename.endswith("/.format_version") for entry, _ in numbered)
    begins = [_data_begin(file, header) for _, header in by_number]
    in_order = begins == sorted(begins)
    if (computed and not in_order) or not {_offset(fake) for fake in fakes if fake.numel()} <= set(begins):
        raise Sh2Error(f"{label} were not laid out by torch.save and cannot be read apart").hint(
            "join them: `cat NAME.pt.part0 NAME.pt.part1 ... > NAME.pt`, in numeric order"
        )


def _stored(file: Any, turn: Lock, fake: Tensor, label: str) -> LazyTensor:
    """A tensor whose values lie in the file where torch says."""
    shape, stride, dtype = tuple(fake.shape), fake.stride(), fake.dtype
    begin = _offset(fake) + fake.storage_offset() * dtype.itemsize
    items = 0 if 0 in shape else 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))

    def read() -> Tensor:
        if not items:
            return torch.empty(shape, dtype=dtype)
        data = bytearray(items * dtype.itemsize)
        with turn:
            file.seek(begin)
            count = file.readinto(data)
        if count < len(data):
            raise Sh2Error(f"{label} are truncated: a tensor ends after the last part")
        return torch.frombuffer(data, dtype=dtype).as_strided(shape, stride)

    return LazyTensor(shape, dtype, read)


class _Parts(io.RawIOBase):
    """Files that follow one another, as one file to read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[BinaryIO] = [path.open("rb") for path in paths]
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = bisect_right(self._ends, self._position)
        if part == len(self._files):
            return 0
        begin = self._ends[part - 1] if part else 0
        file = self._files[part]
        file.seek(self._position - begin)
        count: int = file.readinto(memoryview(buffer)[: self._ends[part] - self._position])  # type: ignore[attr-defined]
        self._position += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def write_torch_file(path: Path, tensors: Tensors, wrote: Callable[[int], None] = lambda _: None) -> None:
    """Write a flat dict of tensors as `torch.save` does, one tensor in memory at a time, and sync it to the disk.

    Not atomic: give a name that nobody reads yet.
    """
    with FakeTensorMode():
        empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    with skip_data(materialize_fake_tensors=True):
        torch.save(empty, path)
    with path.open("r+b") as file:
        # a full disk is an error now, and not a signal when a mapped page is written
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        with set_default_mmap_options(mmap.MAP_SHARED):
            mapped = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for name, tensor in tensors.items():
            mapped[name].copy_(tensor.read())
            wrote(tensor.nbytes)
        del mapped
        _write_checksums(path, file)
        file.flush()
        os.fsync(file.fileno())


def _write_checksums(path: Path, file: BinaryIO) -> None:
    """Give the entries that were filled in afterwards their CRC-32: torch does not look, other readers of zip do."""
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir
    for entry in entries:
        file.seek(position)
        central = file.read(46)
        if central[:4] != _CENTRAL_ENTRY:
            raise ValueError(f"no central directory entry of {path} at byte {position}")
        if entry.CRC == 0 and entry.file_size:
            begin = _data_begin(file, entry.header_offset)
            checksum = _crc(file, begin, entry.file_size).to_bytes(4, "little")
            file.seek(begin + entry.file_size)
            at = [position + 16, entry.header_offset + 14]
            if file.read(4) == _DATA_DESCRIPTOR:
                at[1] = begin + entry.file_size + 4
            for where in at:
                file.seek(where)
                file.write(checksum)
        position += 46 + sum(int.from_bytes(central[i : i + 2], "little") for i in (28, 30, 32))


def _data_begin(file: BinaryIO, header: int) -> int:
    file.seek(header + 26)
    lengths = file.read(4)
    return header + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _crc(file: BinaryIO, begin: int, size: int, step: int = 1 << 24) -> int:
    file.seek(begin)
    checksum = 0
    for done in range(0, size, step):
        checksum = zlib.crc32(file.read(min(step, size - done)), checksum)
    return checksum
