"""The index of a stored model: units, their files, shapes, dtypes, byte counts and hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

INDEX_FILE = "index.json"
FORMAT: Literal[1] = 1

StoredDType = Literal["float32", "bfloat16", "float16"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class TensorIndex(BaseModel):
    """Shape and dtype of one tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    dtype: StoredDType


class FileIndex(BaseModel):
    """One file of the model folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: FileName
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class UnitIndex(FileIndex):
    """One unit: ``embed``, ``block-NNN`` or ``head``."""

    tensors: Mapping[str, TensorIndex]


class ModelIndex(BaseModel):
    """What a store folder holds. `digest` identifies the weights wherever they are copied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    name: Annotated[str, Field(min_length=1)]
    source: str
    model_type: str
    blocks: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1)]
    max_context_tokens: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    head_dim: Annotated[int, Field(ge=1)]
    dtype: StoredDType
    tied_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    units: Mapping[str, UnitIndex]
    files: Mapping[str, FileIndex]
    """``config``, ``tokenizer`` and, where the source has one, ``chat_template``."""
    seal: str = ""
    """sha256 over all other fields, so that damage to the index itself is found; empty in an index not yet written."""

    @property
    def digest(self) -> str:
        """sha256 over what is computed with: units, config, tokenizer, template; not the name or the source."""
        content = self.model_dump(mode="json", exclude={"name", "source", "seal"})
        return _sha256(content)

    def sealed(self) -> ModelIndex:
        """The same with its seal, as it is written."""
        return self.model_copy(update={"seal": _sha256(self.model_dump(mode="json", exclude={"seal"}))})

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of KV that one token takes in one block: keys and values."""
        return 2 * self.kv_heads * self.head_dim * dtype_bytes

    def block_weight_bytes(self, block: int, dtype_bytes: int) -> int:
        """Bytes of one block's weights once loaded with elements of ``dtype_bytes``."""
        return sum(prod(t.shape) * dtype_bytes for t in self.units[block_unit(block)].tensors.values())

    def block_values(self, block: int) -> int:
        """Weights of one block."""
        return sum(prod(t.shape) for t in self.units[block_unit(block)].tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all unit files."""
        return sum(unit.bytes for unit in self.units.values())


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def block_unit(index: int) -> str:
    """Unit name of block ``index``: ``block-007``."""
    return f"block-{index:03d}"
