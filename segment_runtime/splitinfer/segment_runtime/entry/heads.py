"""What the entry computes itself at both ends of the chain, loaded once per dtype."""

from __future__ import annotations

import asyncio

from splitinfer.optimizer.plan import DTypeName
from splitinfer.segment_runtime.engine.port import Engine, EngineError, LoadedHead
from splitinfer.segment_runtime.entry.changes import ChangeFailed
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.reader import StoredModel


class Heads:
    """Embedders and heads of one model."""

    def __init__(self, model: StoredModel, engine: Engine) -> None:
        self._model = model
        self._engine = engine
        self._loaded: dict[str, tuple[Embedder, LoadedHead]] = {}

    async def load(self, dtype: DTypeName) -> None:
        """Load what a plan in this dtype needs, beside what serves. Raises ChangeFailed."""
        if dtype in self._loaded:
            return
        loop = asyncio.get_running_loop()
        try:
            embedder = await loop.run_in_executor(None, Embedder, self._model, dtype)
            head = await loop.run_in_executor(None, self._engine.load_head, self._model, dtype)
        except (EngineError, StoreError) as error:
            raise ChangeFailed(f"entry: {error}", refused=True) from error
        self._loaded[dtype] = (embedder, head)

    def keep_only(self, dtype: DTypeName) -> tuple[Embedder, LoadedHead]:
        """What was loaded for this dtype; that of any other is let go of."""
        self._loaded = {dtype: self._loaded[dtype]}
        return self._loaded[dtype]
