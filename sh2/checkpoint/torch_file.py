"""Files of `torch.save`, read and written one tensor at a time. Nothing in a file is ever executed.

Torch tells where in a file every tensor lies: of a whole file by mapping it into memory, of one that was split into
parts by loading it under a fake mode, through a seekable view of the parts. No values are read before they are asked
for, so neither a joined copy on the disk nor the whole model in memory is needed. Writing lays out the file first, with
room for the values, and fills it in.
"""

import io
import mmap
import os
import pickle
import re
import zipfile
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.serialization import safe_globals, set_default_mmap_options, skip_data

from sh2.checkpoint.tensors import LazyTensor, Tensors, fill, tensor_bytes
from sh2.errors import Sh2Error

# published files keep the FP8 state of some layers as an io.BytesIO, which is bytes with a position; nothing else
# beyond the tensors and containers that torch allows itself is let in
_ALLOWED: list[Any] = [io.BytesIO]
_WRAPPERS = ("module", "state_dict", "model")  # what training code puts its tensors under
_CENTRAL_ENTRY = b"PK\x01\x02"
_DATA_DESCRIPTOR = b"PK\x07\x08"


def read_torch_file(path: Path) -> dict[str, LazyTensor]:
    """Open a file of `torch.save`.

    Raises:
        Sh2Error: the file is truncated, damaged, in the format before torch 1.6, or holds more than tensors.
    """
    label, addresses = str(path), set[int]()

    def see(storage: UntypedStorage, _: str) -> UntypedStorage:
        if storage.nbytes():
            addresses.add(storage.data_ptr())
        return storage

    loaded = _load(path, label, map_location=see, mmap=True)
    mapped_at = _mapped_at(path, addresses)

    def lazy(tensor: Tensor) -> LazyTensor:
        address = tensor.untyped_storage().data_ptr()
        if mapped_at is None or address not in addresses:
            return LazyTensor.of(tensor)
        return _stored((path,), tensor, address - mapped_at, label)

    return {name: lazy(tensor) for name, tensor in _tensors(loaded, label).items()}


def read_torch_parts(paths: Sequence[Path]) -> dict[str, LazyTensor]:
    """Open a file of `torch.save` that was cut into parts, given in order; the parts stay as they are.

    Raises:
        Sh2Error: as `read_torch_file`, or another program packed the archive.
    """
    label = f"{paths[0]} and the {len(paths) - 1} parts after it"
    with io.BufferedReader(_Parts(paths)) as joined:
        with FakeTensorMode():
            loaded = _load(joined, label, map_location="cpu")
        tensors = _tensors(loaded, label)
        fakes = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, FakeTensor)}
        _check_offsets(joined, fakes.values(), label)
    return {
        name: _stored(paths, tensor, _offset(tensor), label) if name in fakes else LazyTensor.of(tensor)
        for name, tensor in tensors.items()
    }


def _load(file: Path | BinaryIO, label: str, **options: Any) -> object:
    try:
        with safe_globals(_ALLOWED):
            return torch.load(file, weights_only=True, **options)
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
        by_number = sorted((int(entry.filename.rpartition("/")[2]), entry.header_offset) for entry in _data(archive))
        computed = any(entry.filename.endswith("/.format_version") for entry in archive.infolist())
    begins = [_data_begin(file, header) for _, header in by_number]
    in_order = begins == sorted(begins)
    if (computed and not in_order) or not {_offset(fake) for fake in fakes if fake.numel()} <= set(begins):
        raise Sh2Error(f"{label} were not laid out by torch.save and cannot be read apart").hint(
            "join them: `cat NAME.pt.part0 NAME.pt.part1 ... > NAME.pt`, in numeric order"
        )


def _mapped_at(path: Path, addresses: set[int]) -> int | None:
    """The address of a mapped file, from those of all its storages; None if they do not lie as its directory says."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        begins = {_data_begin(file, entry.header_offset) for entry in _data(archive) if entry.file_size}
    if not addresses or not begins:
        return None
    start = min(addresses) - min(begins)
    return start if {address - start for address in addresses} == begins else None


def _data(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries that are storages."""
    return [entry for entry in archive.infolist() if re.search(r"/data/\d+$", entry.filename)]


def _stored(paths: Sequence[Path], layout: Tensor, storage: int, label: str) -> LazyTensor:
    """A tensor in a storage of a file, laid out as another; read, not mapped: to map a page can cost more than to copy.

    Args:
        storage: where it begins.
    """
    shape, stride, dtype = tuple(layout.shape), layout.stride(), layout.dtype
    begin = storage + int(layout.storage_offset()) * dtype.itemsize
    items = 0 if 0 in shape else 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))

    def pieces(buffer: memoryview) -> Iterator[int]:
        left = items * dtype.itemsize
        with _Parts(paths) as file:
            file.seek(begin)
            while left:
                piece = buffer[:left]
                fill(file, piece, label)
                left -= len(piece)
                yield len(piece)

    def read() -> Tensor:
        values = torch.empty(items, dtype=dtype)
        deque(pieces(tensor_bytes(values)), maxlen=0)
        return values.as_strided(shape, stride) if items else values.view(shape)

    return LazyTensor(shape, dtype, read, pieces=pieces if layout.is_contiguous() else None)


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
