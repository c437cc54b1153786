"""The onnx engine: the CPU path, without torch. See `port.Engine` and docs/engines.md."""

from __future__ import annotations

import threading
from collections.abc import Callable

import onnx
import onnxruntime

from splitinfer.segment_runtime.engine.checks import check_blocks, no_progress, thread_count
from splitinfer.segment_runtime.engine.cpu import instruction_set
from splitinfer.segment_runtime.engine.onnx_graph import write_block, write_head
from splitinfer.segment_runtime.engine.onnx_head import OnnxHead
from splitinfer.segment_runtime.engine.onnx_model import BlockGraph, OnnxModel
from splitinfer.segment_runtime.engine.onnx_range import OnnxRange
from splitinfer.segment_runtime.engine.onnx_recipes import Recipe, recipe_of
from splitinfer.segment_runtime.engine.onnx_runtime import (
    give_memory_back,
    load,
    lone_row_differs,
    prepare_process,
)
from splitinfer.segment_runtime.engine.onnx_weights import block_weights, check_dtype, head_weights
from splitinfer.segment_runtime.engine.port import Identity, LoadError, UnsupportedModel
from splitinfer.segment_runtime.engine.registry import UnitRegistry
from splitinfer.segment_runtime.store.converted import BITS, OUTER_BITS, TOOLS
from splitinfer.segment_runtime.store.index import block_unit
from splitinfer.segment_runtime.store.reader import StoredModel

# Two nodes that converted with other tools may hold other codes.
_TOOLS = ", ".join(f"{tool} {version}" for tool, version in TOOLS.items())


class OnnxEngine:
    """Blocks as graphs of their own on the CPU."""

    name = "onnx"
    device = "cpu"

    def __init__(self, device: str, threads: int | None) -> None:
        """Set the process up.

        Raises:
            UnsupportedModel: another device than the CPU, or a thread count that cannot be had.
        """
        if device != "cpu":
            raise UnsupportedModel(f"device: {device!r}: the onnx engine runs on cpu; use --engine torch")
        self.threads = thread_count(threads)
        self.version = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"
        self.identity = Identity(self.name, f"{self.version}, {_TOOLS}", instruction_set(), exact=True)
        prepare_process()
        self._units: UnitRegistry[BlockGraph] = UnitRegistry()
        self._models: dict[str, OnnxModel] = {}
        self._lock = threading.Lock()

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of weights in memory, shared blocks counted once."""
        return self._units.nbytes

    @property
    def free_device_bytes(self) -> None:
        """It computes in the machine's memory."""
        return None

    def load_range(
        self,
        model: StoredModel,
        start: int,
        stop: int,
        dtype: str,
        progress: Callable[[int], None] = no_progress,
    ) -> OnnxRange:
        """Load blocks ``[start, stop)``; ``progress`` is called with bytes loaded so far."""
        check_dtype(dtype)
        check_blocks(model, start, stop)
        shared = self._model(model)
        blocks: list[BlockGraph] = []
        for index in range(start, stop):
            blocks.append(self._load_block(model, shared, index, dtype))
            progress(sum(block.nbytes for block in blocks))
        give_memory_back()
        companion = dtype in BITS and lone_row_differs(BITS[dtype])
        return OnnxRange(self.identity, shared, (start, stop), blocks, companion=companion)

    def load_head(self, model: StoredModel, dtype: str) -> OnnxHead:
        """Load the final norm and the LM head."""
        check_dtype(dtype)
        shared = self._model(model)

        def read() -> BlockGraph:
            norm, weight = head_weights(model, shared.recipe, dtype)
            session = load(write_head(shared.recipe, norm, weight), self.threads, f"{model.name}: head")
            return BlockGraph(session, norm.nbytes + weight.nbytes)

        unit = self._units.get((model.digest, dtype, "head"), read)
        return OnnxHead(
            self.identity, shared.recipe, unit, companion=dtype in BITS and lone_row_differs(OUTER_BITS)
        )

    def _load_block(self, model: StoredModel, shared: OnnxModel, index: int, dtype: str) -> BlockGraph:
        unit = block_unit(index)

        def read() -> BlockGraph:
            weights = block_weights(model, shared.recipe, index, dtype)
            session = load(write_block(shared.recipe, index, weights), self.threads, f"{model.name}: {unit}")
            return BlockGraph(session, weights.nbytes)

        return self._units.get((model.digest, dtype, unit), read)

    def _model(self, model: StoredModel) -> OnnxModel:
        with self._lock:
            found = self._models.get(model.digest)
            if found is None:
                found = self._models[model.digest] = OnnxModel(self._recipe(model))
            return found

    @staticmethod
    def _recipe(model: StoredModel) -> Recipe:
        recipe, index = recipe_of(model.config), model.index
        dims = recipe.dims
        for field, found, indexed in (
            ("model_type", recipe.model_type, index.model_type),
            ("blocks", dims.blocks, index.blocks),
            ("hidden_size", dims.hidden, index.hidden_size),
            ("vocab_size", dims.vocab, index.vocab_size),
            ("kv_heads", dims.kv_heads, index.kv_heads),
            ("head_dim", dims.head_dim, index.head_dim),
        ):
            if found != indexed:
                raise LoadError(f"{model.name}: {field} is {indexed} in the index and {found} in config.json")
        return recipe
