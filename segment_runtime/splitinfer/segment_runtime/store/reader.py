"""Reading a stored model: numpy views on unit files, verified against the index before use."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from splitinfer.segment_runtime.store.architectures import Architecture, architecture_of
from splitinfer.segment_runtime.store.errors import DamagedModel, ModelNotFound, ReplacedModel, StoreError
from splitinfer.segment_runtime.store.home import default_store
from splitinfer.segment_runtime.store.index import INDEX_FILE, FileIndex, ModelIndex
from splitinfer.segment_runtime.store.publish import complete_folder, replaced_half_way
from splitinfer.segment_runtime.store.safetensors_file import (
    NUMPY_DTYPES,
    SAFETENSORS_DTYPES,
    header_length,
    parse_header,
)

__all__ = [
    "NUMPY_DTYPES",
    "SAFETENSORS_DTYPES",
    "ModelStore",
    "StoredModel",
    "default_store",
    "parse_safetensors",
]


class StoredModel:
    """One model folder. Nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open the folder and read its index.

        Raises:
            ModelNotFound: no folder or no index in it.
            DamagedModel: an index that cannot be parsed.
        """
        self.path = path
        self.index = _read_index(path)

    @property
    def name(self) -> str:
        """The name it is served under."""
        return self.index.name

    @cached_property
    def digest(self) -> str:
        """Content digest of the index."""
        return self.index.digest

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``, verified."""
        return dict(json.loads(self.read_file("config")))

    @cached_property
    def architecture(self) -> Architecture:
        """The allow-list entry."""
        return architecture_of(self.config)

    def read_file(self, name: str) -> bytes:
        """A side file (``config``, ``tokenizer``, ``chat_template``), verified. Raises StoreError, DamagedModel."""
        entry = self.index.files.get(name)
        if entry is None:
            raise StoreError(f"{self.name}: has no {name}")
        path = self.path / entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged(path, f"cannot be read: {error}") from error
        self._verify(path, entry, data)
        return data

    def read_unit(self, unit: str) -> dict[str, NDArray[Any]]:
        """Tensors of one unit as read-only views on the mapped file, which is hashed first.

        Raises:
            StoreError: no such unit.
            DamagedModel: bytes, shapes or dtypes that are not those of the index; the file is named.
        """
        entry = self.index.units.get(unit)
        if entry is None:
            raise StoreError(
                f"{self.name}: has no unit {unit!r}; its blocks are 0 to {self.index.blocks - 1}"
            )
        path = self.path / entry.file
        try:
            with path.open("rb") as file:
                found_bytes = os.fstat(file.fileno()).st_size
                if found_bytes != entry.bytes:
                    raise self._damaged(path, f"{found_bytes} bytes, the index says {entry.bytes}")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise self._damaged(path, f"cannot be read: {error}") from error
        self._verify(path, entry, data)
        tensors = parse_safetensors(path, data)
        found = {name: (array.shape, str(array.dtype)) for name, array in tensors.items()}
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in entry.tensors.items()}
        if found != expected:
            wrong = sorted(set(found.items()) ^ set(expected.items()))[0][0]
            raise self._damaged(path, f"tensor {wrong!r} is not as the index says")
        return tensors

    def _verify(self, path: Path, entry: FileIndex, data: bytes | mmap.mmap) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise self._damaged(
                path, f"its sha256 is {found[:12]}..., the index says {entry.sha256[:12]}...: damaged"
            )

    def _damaged(self, path: Path, reason: str) -> DamagedModel:
        """The error for a file that is not that of the index: damage, or an import that replaced the model meanwhile."""
        try:
            replaced = _read_index(self.path).digest != self.digest
        except StoreError:
            replaced = False
        if replaced:
            return ReplacedModel(f"{path}: {self.name} was imported again with other content; open it anew")
        return DamagedModel(f"{path}: {reason}; import the model again")


def _read_index(folder: Path) -> ModelIndex:
    path = folder / INDEX_FILE
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(
            f"{folder.name}: no {INDEX_FILE} in {folder}; import it with `splitinfer models import`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedModel(f"{path}: cannot be read: {error}; import the model again") from error
    try:
        index = ModelIndex.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedModel(f"{path}: {where}: {first['msg']}; import the model again") from error
    if index.seal != index.sealed().seal:
        raise DamagedModel(f"{path}: its content is not that of its seal: damaged; import the model again")
    return index


def parse_safetensors(path: Path, data: mmap.mmap | bytes) -> dict[str, NDArray[Any]]:
    """Zero-copy views on a safetensors file.

    Raises:
        DamagedModel: a header that is not one, tensors outside the file, or a dtype the store does not hold.
    """
    tensors = {}
    try:
        length = header_length(data[:8], len(data))
        for name, entry in parse_header(data[8 : 8 + length], len(data)).items():
            if entry.dtype is None:
                raise ValueError(
                    f"tensor {name!r} has dtype {entry.code}; known are {', '.join(SAFETENSORS_DTYPES)}"
                )
            dtype = NUMPY_DTYPES[entry.dtype]
            count = entry.bytes // dtype.itemsize
            tensors[name] = np.frombuffer(data, dtype, count, entry.offset).reshape(entry.shape)
    except ValueError as error:
        raise DamagedModel(f"{path}: not a safetensors file: {error}") from error
    return tensors


class ModelStore:
    """A folder of model folders."""

    def __init__(self, root: Path | None = None) -> None:
        """By default the user's store. Raises BadHome where there can be none."""
        self.root = root if root is not None else default_store()

    def names(self) -> list[str]:
        """Names of the complete models, sorted."""
        if not self.root.is_dir():
            return []
        there = {p.name for p in self.root.iterdir() if not p.name.startswith(".")} | replaced_half_way(
            self.root
        )
        return sorted(name for name in there if (complete_folder(self.root, name) / INDEX_FILE).is_file())

    def open(self, name: str) -> StoredModel:
        """Open a model by name. Raises ModelNotFound, naming those there are."""
        if not name or "/" in name or name.startswith("."):
            raise ModelNotFound(f"{name!r} is not a model name")
        try:
            return StoredModel(complete_folder(self.root, name))
        except ModelNotFound:
            have = ", ".join(self.names()) or "none"
            raise ModelNotFound(
                f"{name}: not in the store {self.root} (there: {have}); import it with `splitinfer models import SOURCE --name {name}`"
            ) from None
