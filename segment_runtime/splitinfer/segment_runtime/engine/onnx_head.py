"""Final norm and LM head on ONNX Runtime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.onnx_model import BlockGraph
from splitinfer.segment_runtime.engine.onnx_recipes import Recipe
from splitinfer.segment_runtime.engine.port import Array, EngineError, Identity


class OnnxHead:
    """See the port's ``LoadedHead``. A row's logits have the same bits whatever rows are beside it."""

    def __init__(self, identity: Identity, recipe: Recipe, unit: BlockGraph, *, companion: bool) -> None:
        """Hold a head that is loaded; ``companion``: a row that is alone gets another beside it, as in a range."""
        self.identity = identity
        self._hidden_size = recipe.dims.hidden
        self._unit = unit
        self._companion = companion

    @property
    def weight_bytes(self) -> int:
        """Bytes of the head, the tied token table included."""
        return self._unit.nbytes

    def logits(self, hidden: Array) -> NDArray[np.float32]:
        """``[rows, hidden_size]`` -> float32 ``[rows, vocab_size]``."""
        if hidden.ndim != 2 or hidden.shape[1] != self._hidden_size or hidden.shape[0] < 1:
            raise EngineError(f"hidden: shape {hidden.shape}, the head asks for [rows, {self._hidden_size}]")
        if str(hidden.dtype) != "float32":
            raise EngineError(f"hidden: dtype {hidden.dtype}, the head is float32")
        rows = np.array(hidden, np.float32)  # of our own and aligned: the array may be a view on a message
        if len(rows) == 1 and self._companion:
            rows = np.repeat(rows, 2, axis=0)
        logits: NDArray[np.float32] = self._unit.session.run(["logits"], {"hidden": rows})[0]
        return logits[: len(hidden)]
