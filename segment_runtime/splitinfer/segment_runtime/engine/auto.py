"""The engine ``auto`` on a CPU: onnx where it has a graph, torch for the rest, and it says which and why."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from splitinfer.segment_runtime.engine.checks import no_progress
from splitinfer.segment_runtime.engine.port import Engine, LoadedHead, LoadedRange, UnsupportedModel
from splitinfer.segment_runtime.store.reader import StoredModel

log = structlog.get_logger()


class AutoEngine:
    """Hands every load to one of two engines; the second is made when it is first needed."""

    name = "auto"

    def __init__(self, first: Engine, second: Callable[[], Engine]) -> None:
        """``first`` is asked; ``second`` makes the engine for what it refuses as `UnsupportedModel`."""
        self._first = first
        self._make_second = second
        self._second: Engine | None = None
        self._lock = threading.Lock()
        self.device = first.device
        self.threads = first.threads
        self.identity = first.identity

    @property
    def version(self) -> str:
        """Of the engines that were needed so far."""
        return "; ".join(engine.version for engine in (self._first, self._second) if engine is not None)

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of weights in memory, of both."""
        second = self._second
        return self._first.resident_weight_bytes + (0 if second is None else second.resident_weight_bytes)

    @property
    def free_device_bytes(self) -> int | None:
        """It is the engine of a CPU."""
        return self._first.free_device_bytes

    def load_range(
        self,
        model: StoredModel,
        start: int,
        stop: int,
        dtype: str,
        progress: Callable[[int], None] = no_progress,
    ) -> LoadedRange:
        """Load blocks ``[start, stop)`` with the engine that has them."""
        try:
            return self._first.load_range(model, start, stop, dtype, progress)
        except UnsupportedModel as reason:
            return self._other(model, dtype, reason).load_range(model, start, stop, dtype, progress)

    def load_head(self, model: StoredModel, dtype: str) -> LoadedHead:
        """Load the head with the engine that has it."""
        try:
            return self._first.load_head(model, dtype)
        except UnsupportedModel as reason:
            return self._other(model, dtype, reason).load_head(model, dtype)

    def _other(self, model: StoredModel, dtype: str, reason: UnsupportedModel) -> Engine:
        with self._lock:
            if self._second is None:
                try:
                    self._second = self._make_second()
                except UnsupportedModel as error:
                    raise UnsupportedModel(f"{reason}; and {error}") from error
        log.warning(
            "another engine", model=model.name, dtype=dtype, engine=self._second.name, reason=str(reason)
        )
        return self._second
