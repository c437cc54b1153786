"""Stored models that are not what their index promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from splitinfer.segment_runtime.engine.port import Array
from splitinfer.segment_runtime.store.reader import StoredModel


class Edited:
    """A stored model whose units or config are not what the index promised."""

    def __init__(self, model: StoredModel, **changes: object) -> None:
        self._model = model
        self._changes = changes

    def __getattr__(self, name: str) -> object:
        return self._changes[name] if name in self._changes else getattr(self._model, name)


def with_unit(model: StoredModel, unit: str, edit: Callable[[dict[str, Any]], object]) -> StoredModel:
    """``model``, but ``unit`` reads as ``edit`` leaves it."""

    def read_unit(name: str) -> dict[str, Array]:
        tensors = {key: array.copy() for key, array in model.read_unit(name).items()}
        if name == unit:
            edit(tensors)
        return tensors

    return cast("StoredModel", Edited(model, read_unit=read_unit))
