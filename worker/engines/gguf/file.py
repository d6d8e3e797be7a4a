"""Reads GGUF files: metadata and weights, of versions 2 and 3, little-endian.

Nothing in the file is trusted: each count, length and offset is checked against the bytes present before it is used,
so a broken file gives a ModelError with the reason, never a crash, a hang or an absurd allocation.
The layout is that of the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from worker.engines.gguf.foreign import MAGIC, refuse_foreign, unreadable
from worker.engines.gguf.storage import READABLE, STORAGE
from worker.errors import ModelError

Bytes = NDArray[np.uint8]
Matrix = NDArray[np.float32]
MetadataValue: TypeAlias = bool | int | float | str | list[str] | NDArray[np.generic]
T = TypeVar("T", bool, int, float, str, list[str], NDArray[np.generic])

LLAMA_CPP = "Use the llama_cpp engine (pip install 'jobwire[gguf]', Python 3.12 or newer)."
"""What to do with a file that only the numpy engine does not run."""

VERSIONS = (2, 3)
ALIGNMENT_DEFAULT = 32
DIMENSIONS_MAX = 4

BOOL, STRING, ARRAY = 7, 8, 9
"""Type numbers of metadata values that are no plain numbers."""

SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"
}  # fmt: skip
"""How scalar metadata values are stored, by type number."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is: its shape in numpy's order (outputs, inputs), its type number, its offset in the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def size(self) -> int:
        """The number of its elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Gguf:
    """An open GGUF file. `data` are the bytes behind the header, mapped from disk; tensors are decoded when read."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, Tensor]
    data: Bytes

    def uniform(self, key: str, default: int | None = None) -> int:
        """Return a number that may also be a list with one for each layer, all equal: newer converters write those.

        Raises ModelError if it is not, or missing.
        """
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "ui" or not len(value):
            return self.get(key, int, default)
        if (value != value[0]).any():
            what = f"{key!r} differs between layers, and the numpy engine computes layers that are alike"
            _refuse(self.path, what, LLAMA_CPP)
        return int(value[0])

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a metadata value that must be of type `kind`. Raises ModelError if it is not, or missing."""
        value = self.metadata.get(key, default)
        if value is None:
            _refuse(self.path, f"{key!r} is missing from its metadata", "Convert the model again.")
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            _refuse(self.path, f"{key!r} is not a {kind.__name__}", "Convert the model again.")
        return value

    def read(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """Return a tensor as float32. Raises ModelError if it is missing, of another shape or of a type not read here.

        Changes nothing: the array is a copy.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            _refuse(self.path, f"the tensor {name!r} is missing", "Convert the model again.")
        if tensor.shape != shape:
            _refuse(self.path, f"{name!r} has shape {tensor.shape}, expected {shape}", "Convert the model again.")
        storage = STORAGE.get(tensor.type)
        if storage is None or storage.decode is None:
            kind = f"number {tensor.type}" if storage is None else storage.name
            _refuse(
                self.path,
                f"{name!r} is stored as {kind}, and the numpy engine reads {READABLE}",
                f"{LLAMA_CPP} Or give a file of one of these types.",
            )
        return storage.read(self.data[tensor.offset : tensor.offset + storage.bytes_of(tensor.size)]).reshape(shape)


def open_gguf(path: Path) -> Gguf:
    """Open a GGUF file and read its header. Raises ModelError when there is no such file or it is not sound."""
    content = _content(path)
    cursor = _Cursor(content, path)
    cursor.read(len(MAGIC))
    version = cursor.integer("<I")
    if version not in VERSIONS:
        swapped = " (or the file is big-endian)" if version >> 16 else ""
        _refuse(path, f"it has GGUF version {version}{swapped}, and 2 and 3 can be read", "Convert the model again.")
    tensor_count, value_count = cursor.integer("<Q"), cursor.integer("<Q")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(value_count):
        key = cursor.string()
        if key in metadata:
            _broken(path, f"{key!r} is there twice")
        metadata[key] = cursor.value(cursor.integer("<I"))
    infos = [cursor.tensor() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    if not isinstance(alignment, int) or alignment < 1:
        _broken(path, "'general.alignment' is not a positive number")
    data = np.frombuffer(content, np.uint8)[-(-cursor.offset // alignment) * alignment :]
    return Gguf(path, metadata, _checked(infos, data, path), data)


def _content(path: Path) -> mmap.mmap:
    """Map a file that begins like a GGUF file: a pipe or a device could make us wait for ever."""
    refuse_foreign(path)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def _checked(infos: list[Tensor], data: Bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name. Raises ModelError for one that does not lie within the data."""
    tensors: dict[str, Tensor] = {}
    for tensor in infos:
        if tensor.name in tensors:
            _broken(path, f"the tensor {tensor.name!r} is there twice")
        tensors[tensor.name] = tensor
        storage = STORAGE.get(tensor.type)
        if storage is None:
            continue
        if tensor.shape[-1] % storage.block:
            _broken(path, f"rows of {tensor.name!r} are no multiple of {storage.block}, which {storage.name} needs")
        end = tensor.offset + storage.bytes_of(tensor.size)
        if end > len(data):
            _refuse(
                path,
                f"the file is not complete: {tensor.name!r} ends {end - len(data):,} bytes behind its end",
                "Download it again.",
            )
    return tensors


class _Cursor:
    """Reads the header from front to back. `offset` is the number of bytes read."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self._content = memoryview(content)
        self._path = path
        self.offset = 0

    def read(self, size: int) -> memoryview:
        start, self.offset = self.offset, self.offset + size
        if self.offset > len(self._content):
            _refuse(
                self._path,
                f"the file is not complete: it ends within its header, at byte {len(self._content):,}",
                "Download it again.",
            )
        return self._content[start : self.offset]

    def integer(self, form: str) -> int:
        (number,) = struct.unpack(form, self.read(struct.calcsize(form)))
        return int(number)

    def string(self) -> str:
        return str(self.read(self.integer("<Q")), "utf-8", "replace")

    def value(self, kind: int) -> MetadataValue:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array(self.integer("<I"), self.integer("<Q"))
        scalar: bool | int | float = self._scalars(kind, 1)[0].item()
        return scalar

    def _array(self, kind: int, count: int) -> MetadataValue:
        if kind == STRING:
            return [self.string() for _ in range(count)]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> NDArray[np.generic]:
        form = SCALARS.get(kind)
        if form is None:
            _broken(self._path, f"a metadata value has type {kind}, which does not exist or is a list of lists")
        numbers = np.frombuffer(self.read(count * np.dtype(form).itemsize), form)
        return numbers != 0 if kind == BOOL else numbers.copy()

    def tensor(self) -> Tensor:
        name = self.string()
        dimensions = self.integer("<I")
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            _broken(self._path, f"{name!r} has {dimensions} dimensions")
        # GGUF names the fastest dimension first, numpy last.
        shape = tuple(self.integer("<Q") for _ in range(dimensions))[::-1]
        if not all(shape):
            _broken(self._path, f"{name!r} has a dimension of size 0")
        return Tensor(name, shape, self.integer("<I"), self.integer("<Q"))


def _broken(path: Path, what: str) -> NoReturn:
    _refuse(path, f"the file is damaged: {what}", "Download or convert it again.")


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise ModelError(f"{path}: {what}. {remedy}")
