"""Safetensors files, read lazily and written one tensor at a time, with a checksum for every tensor.

The library's own writer wants every tensor in memory at once; the format is simple enough to stream: 8 bytes of header
length, a JSON header, the bytes. A CRC-32 of each tensor is kept in the header's metadata, where other readers ignore
it; files without checksums are read unchecked.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sh2.checkpoint.tensors import LazyTensor, Tensors, fill, tensor_bytes
from sh2.errors import Sh2Error

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_CHECKSUM = "crc32:"  # + name of the tensor: the key of its checksum in the metadata


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Open a safetensors file; tensors are read, and checked, one by one.

    Raises:
        Sh2Error: the file is missing, truncated or not safetensors; on reading, a tensor is not what was written.
    """
    try:
        path.open("rb").close()  # safetensors calls a file that it may not read missing
    except OSError as error:
        raise Sh2Error(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        file = safe_open(path, framework="pt", device="cpu")
        metadata = file.metadata() or {}
        places = _places(path)
        return {
            name: _entry(file, path, name, places[name], metadata.get(_CHECKSUM + name))
            for name in file.keys()  # noqa: SIM118
        }
    except (SafetensorError, OSError) as error:
        raise Sh2Error(f"{path} is not a complete safetensors file: {error}").hint(
            "it may be truncated or damaged: copy or download it again"
        ) from None


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where in the file the bytes of every tensor begin and end; of a file whose header was found right."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    begin = 8 + size
    return {
        name: (begin + entry["data_offsets"][0], begin + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _entry(file: Any, path: Path, name: str, place: tuple[int, int], checksum: str | None) -> LazyTensor:
    layout = file.get_slice(name)
    code = layout.get_dtype()
    if code not in _DTYPES:
        raise Sh2Error(f"{path}: `{name}` has dtype {code}; known are {', '.join(_DTYPES)}")

    def check(found: int) -> None:
        if checksum is not None and checksum != f"{found:08x}":
            raise Sh2Error(f"{path} is damaged: `{name}` does not match its checksum").hint(
                "copy or download the file again"
            )

    def read() -> Tensor:
        tensor: Tensor = file.get_tensor(name)
        check(zlib.crc32(tensor_bytes(tensor)))
        return tensor

    def pieces(buffer: memoryview) -> Iterator[int]:
        # read, and not mapped: to map a page can cost more than to copy it
        found, (begin, end) = 0, place
        with path.open("rb", buffering=0) as raw:
            raw.seek(begin)
            while begin < end:
                piece = buffer[: end - begin]
                fill(raw, piece, str(path))
                found = zlib.crc32(piece, found)
                begin += len(piece)
                yield len(piece)
        check(found)

    return LazyTensor(tuple(layout.get_shape()), _DTYPES[code], read, layout.__getitem__, pieces)


def write_safetensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], wrote: Callable[[int], None] = lambda _: None
) -> None:
    """Write a file tensor by tensor and sync it to the disk. Not atomic: give a name that nobody reads yet.

    Args:
        wrote: called with the number of bytes after every tensor.
    """
    # widest first, so that every tensor begins at a multiple of its item size
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    checksums = dict.fromkeys(names, "0" * 8)
    header = _header(tensors, names, metadata, checksums)
    with path.open("wb") as file:
        file.write(header)
        for name in names:
            data = tensor_bytes(_read(tensors[name], name))
            checksums[name] = f"{zlib.crc32(data):08x}"
            file.write(data)
            wrote(data.nbytes)
        # the checksums, known only now, have the length of their placeholders
        file.seek(0)
        file.write(_header(tensors, names, metadata, checksums))
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Tensors, names: list[str], metadata: Mapping[str, str], checksums: Mapping[str, str]) -> bytes:
    every = {"format": "pt", **metadata, **{_CHECKSUM + name: value for name, value in checksums.items()}}
    entries: dict[str, Any] = {"__metadata__": every}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(lazy: LazyTensor, name: str) -> Tensor:
    tensor = lazy.read()
    if tuple(tensor.shape) != lazy.shape or tensor.dtype != lazy.dtype:
        raise ValueError(f"`{name}` was announced as {lazy.dtype} {lazy.shape}, read as {tensor.dtype} {tensor.shape}")
    return tensor
