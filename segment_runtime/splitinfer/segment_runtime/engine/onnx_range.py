"""A range of blocks on ONNX Runtime: a step is decode rows as one batch, then prompts one session at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.segment_runtime.engine.onnx_model import BlockGraph, OnnxModel
from splitinfer.segment_runtime.engine.onnx_runtime import give_memory_back
from splitinfer.segment_runtime.engine.onnx_slab import Slab
from splitinfer.segment_runtime.engine.port import (
    Array,
    Identity,
    KvBlob,
    SessionError,
    SessionRows,
    StepInterrupted,
)

Floats = NDArray[np.float32]

PREFILL_ROWS = 128
"""Rows of a prompt that run at once. The bits are those of any other number; the scratch memory is not."""
_KEPT_BINDINGS = 8


@dataclass
class _Binding:
    """Every block bound to one shape of step: what changes from step to step is written into its arrays."""

    runs: list[tuple[Any, Any]]
    buffers: tuple[Floats, Floats]
    lengths: NDArray[np.int32]
    longest: NDArray[np.int32]
    held: list[Any]


class OnnxRange:
    """Blocks ``[start, stop)`` of one model. See the port's ``LoadedRange``."""

    dtype = "float32"

    def __init__(
        self,
        identity: Identity,
        model: OnnxModel,
        place: tuple[int, int],
        blocks: list[BlockGraph],
        *,
        companion: bool,
    ) -> None:
        """Hold blocks that are loaded.

        Args:
            identity: of the engine.
            model: what all ranges of the model share.
            place: first block, and the one after the last.
            blocks: their graphs.
            companion: a decode row that is alone runs with another row beside it, because this CPU's kernel would
                give it other bits than in company.
        """
        self.identity = identity
        self.start, self.stop = place
        self._model = model
        self._blocks = blocks
        self._companion = companion
        dims = model.recipe.dims
        self._slab = Slab(self.stop - self.start, dims.kv_heads, dims.head_dim)
        self._weight_bytes = sum(block.nbytes for block in blocks)
        self._bindings: OrderedDict[tuple[int, int, int], _Binding] = OrderedDict()
        self._bound_to = (-1, -1)
        self._interrupt: threading.Event | None = None
        """Of the step under way."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of this range."""
        return self._weight_bytes if self._blocks else 0

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes in this range."""
        return self._slab.bytes_per_token

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV reserved now."""
        return self._slab.reserved_bytes

    def open(self, session: int, capacity: int) -> None:
        """Reserve KV for ``capacity`` tokens."""
        self._check_loaded()
        self._slab.open(session, capacity)

    def close(self, session: int) -> None:
        """Free the KV of a session at once."""
        self._slab.close(session)

    def length(self, session: int) -> int:
        """Tokens in the KV cache of a session."""
        return self._slab.get(session).length

    def export_kv(self, session: int, begin: int, end: int) -> KvBlob:
        """KV of tokens ``[begin, end)`` as bytes."""
        return self._slab.export(session, begin, end)

    def import_kv(self, session: int, blob: KvBlob) -> None:
        """Append exported KV."""
        self._slab.restore(session, blob)

    def drop(self) -> None:
        """Free the weights (unless another range shares them) and every session."""
        self._blocks = []
        self._bindings.clear()
        self._slab.clear()
        give_memory_back()

    def step(
        self, hidden: Array, batch: Sequence[SessionRows], interrupt: threading.Event | None = None
    ) -> Array:
        """Run the rows of ``batch`` through the blocks and append to their KV."""
        self._check_loaded()
        self._check(hidden, batch)
        result: Floats = np.empty(hidden.shape, np.float32)
        self._slab.place([part.session for part in batch])
        edges = np.cumsum([0, *(part.count for part in batch)])
        single = [(part, int(at)) for part, at in zip(batch, edges, strict=False) if part.decode]
        self._interrupt = interrupt
        try:
            if single:
                self._decode(hidden, result, single)
            for part, at in zip(batch, edges, strict=False):
                if not part.decode:
                    self._prefill(hidden[at : at + part.count], result[at : at + part.count], part)
        except StepInterrupted:
            for part in batch:
                self._slab.get(part.session).length = part.position
            raise
        finally:
            self._interrupt = None
        return result

    def _check_loaded(self) -> None:
        if not self._blocks:
            raise SessionError(f"blocks [{self.start}, {self.stop}) were dropped")

    def _check(self, hidden: Array, batch: Sequence[SessionRows]) -> None:
        """Everything that can be wrong with a step, before anything is changed."""
        if not batch:
            raise SessionError("batch: is empty")
        if str(hidden.dtype) != self.dtype:
            raise SessionError(f"hidden: dtype {hidden.dtype}, the range is {self.dtype}")
        total, width = sum(part.count for part in batch), self._model.recipe.dims.hidden
        if hidden.shape != (total, width):
            raise SessionError(f"hidden: shape {hidden.shape}, the batch asks for {(total, width)}")
        self._slab.check(batch)
        for part in batch:
            if part.decode and part.count != 1:
                raise SessionError(f"session {part.session}: a decode step has 1 row, not {part.count}")

    def _decode(self, hidden: Array, result: Floats, single: Sequence[tuple[SessionRows, int]]) -> None:
        """One row per session, all as one batch over a run of slots."""
        slab = self._slab
        first, count = slab.gather([part.session for part, _ in single]), len(single)
        rows = {slab.get(part.session).slot: at for part, at in single}
        run = first
        if count == 1 and self._companion:
            run, count = min(first, slab.slots - 2), 2
        # A slot that takes part for company only writes behind its session's last token, where the next step writes.
        lengths = slab.lengths(run, count)
        bound = self._bind(run, count, 1, max(lengths) + 1)
        source = bound.buffers[0]  # [count, 1, hidden]
        for place in range(count):
            source[place, 0] = hidden[rows.get(run + place, rows[first])]
        self._run(bound, lengths, 1)
        out = bound.buffers[len(bound.runs) % 2]
        for place in range(count):
            if (at := rows.get(run + place)) is not None:
                result[at] = out[place, 0]
        for part, _ in single:
            slab.get(part.session).length += 1

    def _prefill(self, hidden: Array, result: Floats, part: SessionRows) -> None:
        """Rows of one prompt, in pieces. A piece of one row runs as two: alone its attention would sum differently."""
        session = self._slab.get(part.session)
        assert session.slot is not None
        for begin in range(0, part.count, PREFILL_ROWS):
            piece = hidden[begin : begin + PREFILL_ROWS]
            rows = max(2, len(piece))
            bound = self._bind(session.slot, 1, rows, session.length + rows)
            bound.buffers[0][0, : len(piece)] = piece
            if len(piece) == 1:
                bound.buffers[0][0, 1] = piece[0]  # written behind the last token and overwritten by the next
            self._run(bound, [session.length], rows)
            result[begin : begin + len(piece)] = bound.buffers[len(bound.runs) % 2][0, : len(piece)]
            session.length += len(piece)

    def _run(self, bound: _Binding, lengths: Sequence[int], rows: int) -> None:
        bound.lengths[:] = lengths
        bound.lengths += rows - 1
        bound.longest[0] = max(lengths) + rows
        for session, binding in bound.runs:
            if self._interrupt is not None and self._interrupt.is_set():
                raise StepInterrupted("the step was given up")
            session.run_with_iobinding(binding)

    def _bind(self, first: int, count: int, rows: int, positions: int) -> _Binding:
        """The blocks bound to a run of slots; the latest shapes are kept, since a decode step repeats its own."""
        self._model.tables.cover(positions)
        now = (self._slab.version, self._model.tables.version)
        if now != self._bound_to:
            self._bindings.clear()
            self._bound_to = now
        key = (first, count, rows)
        bound = self._bindings.pop(key, None) or self._new_binding(first, count, rows)
        self._bindings[key] = bound
        if len(self._bindings) > _KEPT_BINDINGS:
            self._bindings.popitem(last=False)
        return bound

    def _new_binding(self, first: int, count: int, rows: int) -> _Binding:
        shape = (count, rows, self._model.recipe.dims.hidden)
        buffers = (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        lengths, longest = np.zeros(count, np.int32), np.zeros(1, np.int32)
        bound = _Binding([], buffers, lengths, longest, [])
        for at, block in enumerate(self._blocks):
            session = block.session
            io = session.io_binding()

            def give(name: str, array: NDArray[Any], io: Any = io) -> None:
                io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

            give("hidden", buffers[at % 2])
            give("lengths", lengths)
            give("longest", longest)
            cosines, sines = self._model.tables.of(self.start + at)
            give("cosines", cosines)
            give("sines", sines)
            bound.held += [cosines, sines]
            for part, name in enumerate(("keys", "values")):
                address, view = self._slab.address(at, part, first, count)
                io.bind_input(f"past_{name}", "cpu", 0, np.float32, view, address)
                io.bind_output(name, "cpu", 0, np.float32, view, address)
            target = buffers[(at + 1) % 2]
            io.bind_output("result", "cpu", 0, np.float32, target.shape, target.ctypes.data)
            bound.runs.append((session, io))
        return bound
