"""A range of blocks in memory: one step runs its rows through transformers' own blocks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch

from splitinfer.segment_runtime.engine.port import (
    Array,
    KvBlob,
    SessionError,
    SessionRows,
    StepInterrupted,
)
from splitinfer.segment_runtime.engine.torch_arrays import to_array, to_tensor
from splitinfer.segment_runtime.engine.torch_attention import Ragged, StepCache, first_visible, session_mask
from splitinfer.segment_runtime.engine.torch_memory import give_back
from splitinfer.segment_runtime.engine.torch_model import TorchModel
from splitinfer.segment_runtime.engine.torch_sessions import Session, SessionTable
from splitinfer.segment_runtime.engine.torch_threads import ComputeThreads
from splitinfer.segment_runtime.engine.torch_weights import LoadedUnit


class TorchRange:
    """Blocks ``[start, stop)`` of one model. See the port's ``LoadedRange``."""

    def __init__(
        self,
        model: TorchModel,
        start: int,
        stop: int,
        dtype: str,
        units: list[LoadedUnit],
        threads: ComputeThreads,
    ) -> None:
        self.identity = model.identity
        self.start = start
        self.stop = stop
        self.dtype = dtype
        self._model = model
        self._units = units
        self._threads = threads
        self._windows = model.windows[start:stop]
        self._layer_types = model.layer_types[start:stop]
        self._sessions = SessionTable(stop - start, model.kv_heads, model.head_dim, dtype, model.device)
        self._weight_bytes = sum(unit.nbytes for unit in units)

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of the weights of this range."""
        return self._weight_bytes if self._units else 0

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in this range."""
        return self._sessions.bytes_per_token

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV reserved now."""
        return self._sessions.reserved_bytes

    def open(self, session: int, capacity: int) -> None:
        """Reserve KV for ``capacity`` tokens."""
        self._check_loaded()
        self._sessions.open(session, capacity)

    def close(self, session: int) -> None:
        """Free the KV of a session at once."""
        self._sessions.close(session)

    def length(self, session: int) -> int:
        """Tokens in the KV cache of a session."""
        return self._sessions.get(session).length

    def export_kv(self, session: int, begin: int, end: int) -> KvBlob:
        """KV of tokens ``[begin, end)`` as bytes."""
        return self._sessions.export(session, begin, end)

    def import_kv(self, session: int, blob: KvBlob) -> None:
        """Append exported KV."""
        self._sessions.restore(session, blob)

    def drop(self) -> None:
        """Free the weights (unless another range shares them) and every session."""
        self._units = []
        self._sessions.clear()
        give_back(self._model.device)

    def step(
        self, hidden: Array, batch: Sequence[SessionRows], interrupt: threading.Event | None = None
    ) -> Array:
        """Run the rows of ``batch`` through the blocks and append to their KV."""
        self._check_loaded()
        units = self._units
        sessions = self._check_step(hidden, batch)
        self._threads.compute()
        with torch.inference_mode():
            rows = to_tensor(hidden[None]).to(self._model.device)  # [1, rows, hidden]
            rows = self._run(units, rows, batch, sessions, interrupt)
            result = to_array(rows[0].contiguous().cpu())
        for session, part in zip(sessions, batch, strict=True):
            session.length = part.position + part.count
        return result

    def _check_loaded(self) -> None:
        if not self._units:
            raise SessionError(f"blocks [{self.start}, {self.stop}) were dropped")

    def _check_step(self, hidden: Array, batch: Sequence[SessionRows]) -> list[Session]:
        """Everything that can be wrong with a step, before anything is changed."""
        if not batch:
            raise SessionError("batch: is empty")
        if str(hidden.dtype) != self.dtype:
            raise SessionError(f"hidden: dtype {hidden.dtype}, the range is {self.dtype}")
        total = sum(part.count for part in batch)
        if hidden.shape != (total, self._model.hidden_size):
            raise SessionError(
                f"hidden: shape {hidden.shape}, the batch asks for {(total, self._model.hidden_size)}"
            )
        return self._sessions.check(batch)

    def _run(
        self,
        units: Sequence[LoadedUnit],
        rows: torch.Tensor,
        batch: Sequence[SessionRows],
        sessions: Sequence[Session],
        interrupt: threading.Event | None,
    ) -> torch.Tensor:
        model = self._model
        counts = [part.count for part in batch]
        assert rows.shape == (1, sum(counts), model.hidden_size)
        reads, masks = self._visible(rows, batch, sessions)
        writes = [
            session.views(part.position, part.position + part.count)
            for session, part in zip(sessions, batch, strict=True)
        ]
        arguments: dict[str, object] = {
            model.recipe.cache_argument: StepCache(self.start, writes, reads, counts)
        }
        positions = np.concatenate([np.arange(p.position, p.position + p.count) for p in batch])
        embeddings = model.rotary(
            rows, torch.from_numpy(positions)[None].to(model.device), counts, set(self._layer_types)
        )
        for unit, window, layer_type in zip(units, self._windows, self._layer_types, strict=True):
            if interrupt is not None and interrupt.is_set():
                raise StepInterrupted("the step was given up")
            if embeddings is not None:
                arguments["position_embeddings"] = embeddings[layer_type]
            assert unit.module is not None
            rows = unit.module(rows, attention_mask=masks[window], **arguments)
        assert rows.shape == (1, sum(counts), model.hidden_size)
        return rows

    def _visible(
        self, rows: torch.Tensor, batch: Sequence[SessionRows], sessions: Sequence[Session]
    ) -> tuple[list[Sequence[torch.Tensor]], dict[int | None, object]]:
        """What each session attends to, per layer, and under which mask, per window.

        Masks are built once per step and window and shared by the layers. A step of one session has the mask
        itself where a step of several has `Ragged` pairs of row count and mask.
        """
        windows = set(self._windows)
        reads: list[Sequence[torch.Tensor]] = []
        masks: dict[int | None, list[tuple[int, torch.Tensor | None]]] = {window: [] for window in windows}
        for session, part in zip(sessions, batch, strict=True):
            end = part.position + part.count
            views = {}
            for window in windows:
                views[window] = session.views(first_visible(part.position, window), end)
                mask = session_mask(self._model.mask_config, rows[:, : part.count], part.position, window)
                masks[window].append((part.count, mask))
            if len(windows) == 1:
                reads.append(views[self._windows[0]])
            else:
                reads.append(
                    [views[window][2 * i + kv] for i, window in enumerate(self._windows) for kv in (0, 1)]
                )
        if len(sessions) == 1:
            return reads, {window: found[0][1] for window, found in masks.items()}
        return reads, {window: Ragged(tuple(found)) for window, found in masks.items()}
