"""What all ranges of one model share: its recipe, its rotary tables, and blocks that are loaded once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.onnx_recipes import Recipe
from splitinfer.segment_runtime.engine.onnx_rotary import Rotary

Floats = NDArray[np.float32]
_FIRST = 1024


class BlockGraph:
    """A unit in memory: its session, which holds the weights as the kernels read them, and their bytes."""

    __slots__ = ("__weakref__", "nbytes", "session")

    def __init__(self, session: Any, nbytes: int) -> None:
        self.session = session
        self.nbytes = nbytes


class RotaryTables:
    """Cosines and sines by position, one table per kind of layer, as long as positions have been asked for.

    Attributes:
        version: grows when the tables are made anew.
    """

    def __init__(self, rotaries: Sequence[Rotary], max_context: int) -> None:
        self._rotaries = rotaries
        self._max_context = max_context
        self._tables: dict[Rotary, tuple[Floats, Floats]] = {}
        self._length = 0
        self._lock = threading.Lock()
        self.version = 0

    def cover(self, positions: int) -> None:
        """Make sure that positions ``[0, positions)`` are there."""
        if positions <= self._length:
            return
        with self._lock:
            self._length = max(positions, min(max(_FIRST, 2 * self._length), self._max_context))
            self._tables = {rotary: rotary.table(0, self._length) for rotary in set(self._rotaries)}
            self.version += 1

    def of(self, layer: int) -> tuple[Floats, Floats]:
        """``[positions, head_dim / 2]`` cosines and sines of a layer."""
        return self._tables[self._rotaries[layer]]


class OnnxModel:
    """One model without weights."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tables = RotaryTables(recipe.rotaries, recipe.dims.max_context)
