"""Writing a model folder: streamed, hashed on the way, every element checked to be finite."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.store.checkpoint import Checkpoint
from splitinfer.segment_runtime.store.errors import DamagedSource
from splitinfer.segment_runtime.store.index import FileIndex, TensorIndex, UnitIndex
from splitinfer.segment_runtime.store.safetensors_file import NUMPY_DTYPES, make_header

# The exponent bits of each dtype: all of them set is an infinity or a NaN.
_EXPONENTS: Mapping[str, tuple[Any, int]] = {
    "float32": (np.uint32, 0x7F80_0000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}


class _HashedFile:
    """A new file, hashed as it is written, on disk when closed without an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data) if isinstance(data, bytes) else data.nbytes

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def entry(self) -> FileIndex:
        return FileIndex(file=self.path.name, bytes=self._bytes, sha256=self._hash.hexdigest())


def write_file(path: Path, data: bytes) -> FileIndex:
    """Write a side file to disk."""
    with _HashedFile(path) as file:
        file.write(data)
    return file.entry()


def write_unit(
    path: Path, unit: Mapping[str, str], checkpoint: Checkpoint, written: Callable[[int], None]
) -> UnitIndex:
    """Write the tensors of one unit to a safetensors file, piece by piece.

    Args:
        path: the new file.
        unit: name inside the unit -> name in the checkpoint.
        checkpoint: where the tensors come from.
        written: called with the bytes of each piece.

    Raises:
        DamagedSource: a NaN or an infinity, naming the tensor.
        OSError: the disk is full or gone.
    """
    tensors = unit_tensors(unit, checkpoint)
    header, pieces = unit_content(unit, tensors, checkpoint)
    with _HashedFile(path) as file:
        file.write(header)
        for piece in pieces:
            file.write(piece)
            written(piece.nbytes)
    return UnitIndex(**file.entry().model_dump(), tensors=tensors)


def unit_tensors(unit: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, TensorIndex]:
    """Shapes and dtypes of a unit as the index has them."""
    tensors = {}
    for inside, name in sorted(unit.items()):
        info = checkpoint.tensors[name]
        assert info.dtype is not None, "the layout refuses dtypes the store does not hold"
        tensors[inside] = TensorIndex.model_validate({"shape": info.shape, "dtype": info.dtype})
    return tensors


def unit_content(
    unit: Mapping[str, str], tensors: Mapping[str, TensorIndex], checkpoint: Checkpoint
) -> tuple[bytes, Iterator[memoryview]]:
    """What the file of a unit holds: its header, then its tensors in pieces. The pieces raise DamagedSource."""
    # Wide elements first, so that every tensor stays aligned to its element.
    order = sorted(tensors, key=lambda inside: (-NUMPY_DTYPES[tensors[inside].dtype].itemsize, inside))
    header = make_header((inside, tensors[inside].dtype, tensors[inside].shape) for inside in order)

    def pieces() -> Iterator[memoryview]:
        for inside in order:
            count = 0
            for piece in checkpoint.pieces(unit[inside]):
                assert piece.dtype == NUMPY_DTYPES[tensors[inside].dtype], f"{unit[inside]}: {piece.dtype}"
                check_finite(checkpoint.where, unit[inside], tensors[inside].dtype, piece)
                yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
                count += piece.size
            assert count == np.prod(tensors[inside].shape), f"{unit[inside]}: {count} elements"

    return header, pieces()


def check_finite(where: str, name: str, dtype: str, piece: NDArray[Any]) -> None:
    """Raise DamagedSource, naming the tensor, if an element is a NaN or an infinity."""
    bits, exponent = _EXPONENTS[dtype]
    if np.any((np.ascontiguousarray(piece).view(bits) & exponent) == exponent):
        raise DamagedSource(
            f"{where}: tensor {name!r} holds NaN or infinity; the checkpoint is damaged or its training diverged: "
            "fetch it again or take another"
        )


def equal_tensors(checkpoint: Checkpoint, left: str, right: str) -> bool:
    """Whether two tensors of a checkpoint hold the same bytes, compared piece by piece."""
    a, b = checkpoint.tensors[left], checkpoint.tensors[right]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return all(_same(x, y) for x, y in zip(checkpoint.pieces(left), checkpoint.pieces(right), strict=True))


def _same(x: NDArray[Any], y: NDArray[Any]) -> bool:
    return x.shape == y.shape and np.array_equal(_bytes(x), _bytes(y))


def _bytes(x: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def sync_folder(path: Path) -> None:
    """Put a folder's own entries on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def common_dtype(tensors: Iterable[TensorIndex]) -> str:
    """The dtype that holds most elements."""
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + int(np.prod(tensor.shape, dtype=np.int64))
    return max(elements, key=lambda dtype: (elements[dtype], dtype))
