"""What the local substrate must know of a stored model before it starts anything: blocks, bytes, digest.

Read from the index file of the model folder, whose format the runtime's store fixes; a test holds this
reader against the store's own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ValidationError

from splitinfer.operator.errors import UserError
from splitinfer.optimizer.plan import ActivationName, DTypeName, activation_of, weight_bytes

INDEX_FILE = "index.json"
_KV_BYTES: Mapping[ActivationName, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class _Tensor(BaseModel):
    shape: tuple[int, ...]


class _Unit(BaseModel):
    tensors: dict[str, _Tensor]


class _Index(BaseModel):
    blocks: int
    max_context_tokens: int
    kv_heads: int
    head_dim: int
    hidden_size: int = 0
    tied_embeddings: bool = False
    units: dict[str, _Unit]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A stored model in numbers.

    Attributes:
        root: the store folder that has it.
        name: its name there, which it is served under.
        digest: content digest of its index.
        blocks: number of blocks.
        max_context_tokens: longest context the model was made for.
        kv_values_per_token: values (not bytes) of KV that one token takes in one block.
        shapes: of the tensors of each unit.
        hidden_size: width of the activations.
        tied: the LM head is the embedding.
    """

    root: Path
    name: str
    digest: str
    blocks: int
    max_context_tokens: int
    kv_values_per_token: int
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    hidden_size: int
    tied: bool

    @property
    def unit_values(self) -> Mapping[str, int]:
        """Number of weights of each unit."""
        return {unit: sum(map(math.prod, shapes.values())) for unit, shapes in self.shapes.items()}

    def weight_bytes(self, start: int, stop: int, dtype: DTypeName) -> int:
        """Bytes of the weights of blocks ``[start, stop)``."""
        values = self.unit_values
        return weight_bytes(sum(values[_block_unit(index)] for index in range(start, stop)), dtype)

    def kv_bytes(self, blocks: int, tokens: int, dtype: DTypeName) -> int:
        """Bytes of KV of ``tokens`` tokens in ``blocks`` blocks."""
        return self.kv_values_per_token * blocks * tokens * _KV_BYTES[activation_of(dtype)]


def home(*, writing: bool = False) -> Path:
    """``$SPLITINFER_HOME``, by default ``~/.cache/splitinfer``.

    The runtime's store has the same rule in words of its own (`store.home`), as neither package imports the other.

    Args:
        writing: it is going to be written to.

    Raises:
        UserError: what is there is no folder, or may not be used so.
    """
    named = os.environ.get("SPLITINFER_HOME")
    path = Path(named) if named else Path.home() / ".cache" / "splitinfer"
    # os.path.exists and not Path.exists, which raises where a folder above may not be entered.
    there = next(each for each in (path, *path.parents, Path()) if os.path.exists(each))  # noqa: PTH110
    if not there.is_dir():
        raise UserError("SPLITINFER_HOME", f"{path}: {there} is not a folder; set it to one")
    if not os.access(there, os.X_OK | (os.W_OK if writing else os.R_OK)):
        what = "written to" if writing else "read"
        raise UserError("SPLITINFER_HOME", f"{path}: {there} cannot be {what}; set it to a folder that can")
    return path


def find_model(source: str, store: Path, field: str) -> ModelFacts:
    """The model of a manifest's source, which must be on this machine already.

    Raises:
        UserError: on ``field``: a source that the local substrate does not read, or a model that is not there.
    """
    scheme, _, rest = source.partition("://")
    match scheme:
        case "store":
            return _read(store, rest, field)
        case "file":
            folder = Path(unquote(urlsplit(source).path))
            if not (folder / INDEX_FILE).is_file():
                raise UserError(
                    field,
                    f"{folder} has no {INDEX_FILE}, so it is not a model folder of a store; "
                    f"run `splitinfer models import {folder}` and use store://NAME",
                )
            return _read(folder.parent, folder.name, field)
        case "hf":
            raise UserError(
                field,
                f"{source}: local pipelines serve from the store; run `splitinfer models import {source} --name NAME` "
                "and use store://NAME",
            )
        case _:
            raise UserError(
                field, f"{source}: a local pipeline has no volume claims; use store://NAME or file:///PATH"
            )


def is_stored(source: str, store: Path) -> bool:
    """Whether a source of the store is there, whole or not. What is no source of the store counts as there."""
    scheme, _, name = source.partition("://")
    return scheme != "store" or (store / name / INDEX_FILE).is_file()


def _read(root: Path, name: str, field: str) -> ModelFacts:
    path = root / name / INDEX_FILE
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        index = _Index.model_validate(raw)
        wanted = ("embed", *map(_block_unit, range(index.blocks)), "head")
        missing = [unit for unit in wanted if unit not in index.units]
        if missing:
            raise ValueError(f"no unit {missing[0]}")
    except FileNotFoundError:
        have = ", ".join(_names(root)) or "none yet"
        raise UserError(
            field,
            f"no model {name!r} in {root} (there: {have}); "
            "import it with `splitinfer models import SOURCE --name NAME`",
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(
            field, f"{path} cannot be read; import the model again ({_first_line(error)})"
        ) from None
    content = {key: value for key, value in raw.items() if key not in ("name", "source", "seal")}
    return ModelFacts(
        root=root,
        name=name,
        digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        blocks=index.blocks,
        max_context_tokens=index.max_context_tokens,
        kv_values_per_token=2 * index.kv_heads * index.head_dim,
        shapes={
            unit: {name: tensor.shape for name, tensor in entry.tensors.items()}
            for unit, entry in index.units.items()
        },
        hidden_size=index.hidden_size,
        tied=index.tied_embeddings,
    )


def _block_unit(index: int) -> str:
    return f"block-{index:03d}"


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if not p.name.startswith(".") and (p / INDEX_FILE).is_file())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
