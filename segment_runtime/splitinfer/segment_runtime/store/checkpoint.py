"""What an import reads from, whatever its format: a config, named tensors in pieces, a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from splitinfer.segment_runtime.store.safetensors_file import NUMPY_DTYPES

PIECE_BYTES = 8 << 20
"""What a piece of a tensor is about as large as: an import holds a few of them, never a model."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as it will be stored. ``dtype`` is None where the store has no such dtype: ``code`` says which."""

    shape: tuple[int, ...]
    dtype: str | None
    code: str

    @property
    def bytes(self) -> int:
        """Bytes in the store."""
        return math.prod(self.shape) * (NUMPY_DTYPES[self.dtype].itemsize if self.dtype else 0)


class Checkpoint(Protocol):
    """A model that can be imported. Opening one reads metadata only; errors are `StoreError`, naming file and field."""

    source: str
    """What the user named, for the index."""
    where: str
    """The file or folder that errors about tensors name."""
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tokenizer: bytes | None
    """A ``tokenizer.json`` of the tokenizers library."""
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """The elements of one tensor in row-major order, in arrays of any shape, in its stored dtype."""
