"""What a host holds: epochs, the ranges of each, their sessions, and the memory all that takes.

No socket and no clock. Loading runs on a thread of its own, steps run on the compute thread, and both touch
this state only through the methods here, under one lock where they meet.

Errors
------
PrepareError              a prepare that is refused; `field` names what in the request cannot be met
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from splitinfer.segment_runtime.engine.port import Array, Engine, LoadedRange
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from splitinfer.segment_runtime.wire import DTYPE_NAMES, DTYPES, CheckedSlice, Expectation, OpenSession


class PrepareError(Exception):
    """A prepare that is refused, before anything is loaded or after what was loaded is dropped again."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(slots=True)
class Hop:
    """One range of one epoch, with the sessions that run through it."""

    expected: Expectation
    loaded: LoadedRange
    next_address: str
    last: bool
    capacities: dict[int, int] = field(default_factory=dict)

    @property
    def reserved_tokens(self) -> int:
        """KV tokens reserved by the open sessions."""
        return sum(self.capacities.values())

    def session(self, session: int) -> OpenSession | None:
        """Look up an open session."""
        capacity = self.capacities.get(session)
        return None if capacity is None else OpenSession(self.loaded.length(session), capacity)

    def reserved_without(self, released: Iterable[int]) -> int:
        """Reserved tokens once ``released`` are closed."""
        return self.reserved_tokens - sum(self.capacities.get(s, 0) for s in set(released))

    def release(self, sessions: Iterable[int]) -> None:
        """Free the KV of sessions; those that are not open are passed over (a release may come twice)."""
        for session in sessions:
            if self.capacities.pop(session, None) is not None:
                self.loaded.close(session)

    def run(self, slices: tuple[CheckedSlice, ...], hidden: Array) -> Array:
        """Open what begins, then one step of the engine: ``[rows, hidden]`` in and out."""
        opened: list[int] = []
        try:
            for piece in slices:
                if piece.opens:
                    self.loaded.open(piece.rows.session, piece.capacity)
                    self.capacities[piece.rows.session] = piece.capacity
                    opened.append(piece.rows.session)
            return self.loaded.step(hidden, [piece.rows for piece in slices])
        except Exception:
            self.release(opened)
            raise

    def close(self) -> None:
        """Free every session."""
        self.release(list(self.capacities))


@dataclass(slots=True)
class HostEpoch:
    """The hops of one plan that are on this host."""

    epoch: int
    digest: str
    hops: dict[int, Hop]
    budget_bytes: int
    committed: bool = False


class HostRanges:
    """Everything that a host has loaded."""

    def __init__(self, engine: Engine, store: ModelStore, node: str, memory_limit_bytes: int) -> None:
        self.engine = engine
        self.node = node
        self.memory_limit_bytes = memory_limit_bytes
        self._store = store
        self._lock = threading.Lock()
        self._epochs: dict[int, HostEpoch] = {}
        self._fence = 0
        self._models: dict[str, StoredModel] = {}

    @property
    def fence(self) -> int:
        """Newest epoch that was ever asked for here; a prepare must be newer."""
        return self._fence

    @property
    def epochs(self) -> tuple[HostEpoch, ...]:
        """Epochs that are loaded, oldest first."""
        with self._lock:
            return tuple(self._epochs[e] for e in sorted(self._epochs))

    def hop(self, epoch: int, hop: int) -> Hop | None:
        """The hop that a stream asks for."""
        with self._lock:
            found = self._epochs.get(epoch)
        return None if found is None else found.hops.get(hop)

    def prepare(self, request: pb.PrepareRequest, progress: Callable[[int, int], None]) -> HostEpoch:
        """Load the ranges of an epoch beside those that serve. Repeating it is harmless.

        Raises:
            PrepareError: the request does not fit this host; nothing of it stays loaded.
            StoreError, EngineError: from the store and the engine.
        """
        with self._lock:
            known = self._epochs.get(request.epoch)
            if known is not None and known.digest == request.plan_digest:
                return known
            if known is not None:
                raise PrepareError(
                    "epoch", f"{request.epoch} is prepared already, for another plan; use a newer epoch"
                )
            if request.epoch <= self._fence:
                raise PrepareError(
                    "epoch", f"{request.epoch} is fenced off: epoch {self._fence} was seen; use a newer one"
                )
            self._fence = request.epoch
        model = self._open_model(request)
        dtype = self._check(request, model)
        itemsize = DTYPES[dtype][1].itemsize
        hops: dict[int, Hop] = {}
        loaded_bytes = 0
        total = sum(
            model.index.block_weight_bytes(b, itemsize)
            for spec in request.ranges
            for b in range(spec.start, spec.stop)
        )
        try:
            for spec in request.ranges:

                def note(done: int, before: int = loaded_bytes) -> None:
                    progress(before + done, total)

                loaded = self.engine.load_range(model, spec.start, spec.stop, dtype, note)
                hops[spec.hop] = Hop(
                    expected=Expectation(
                        epoch=request.epoch,
                        hop=spec.hop,
                        dtype=dtype,
                        hidden_size=model.index.hidden_size,
                        kv_budget_tokens=request.kv_budget_tokens,
                        max_context_tokens=request.max_context_tokens,
                    ),
                    loaded=loaded,
                    next_address=spec.next,
                    last=spec.hop == request.hops - 1,
                )
                loaded_bytes += loaded.weight_bytes
        except BaseException:
            for hop in hops.values():
                hop.loaded.drop()
            raise
        budget = sum(hop.loaded.kv_bytes_per_token for hop in hops.values()) * request.kv_budget_tokens
        prepared = HostEpoch(request.epoch, request.plan_digest, hops, budget)
        with self._lock:
            self._epochs[request.epoch] = prepared
        return prepared

    def _open_model(self, request: pb.PrepareRequest) -> StoredModel:
        model = self._models.get(request.model_digest)
        if model is None:
            model = self._store.open(request.model_name)
            if model.digest != request.model_digest:
                raise PrepareError(
                    "model_digest",
                    f"{request.model_name} on {self.node} has digest {model.digest[:12]}..., the plan is for "
                    f"{request.model_digest[:12]}...; import the same model on every node",
                )
            self._models[request.model_digest] = model
        return model

    def _check(self, request: pb.PrepareRequest, model: StoredModel) -> str:
        """Ranges, dtype and memory, before anything is loaded. Returns the dtype's name."""
        dtype = DTYPE_NAMES.get(request.dtype)
        if dtype is None:
            raise PrepareError("dtype", f"{request.dtype} is not a dtype")
        if not request.ranges:
            raise PrepareError("ranges", "a host of the plan has at least one range")
        index = model.index
        for i, spec in enumerate(request.ranges):
            if not 0 <= spec.start < spec.stop <= index.blocks:
                raise PrepareError(
                    f"ranges[{i}]", f"[{spec.start}:{spec.stop}) is not within the {index.blocks} blocks"
                )
            if spec.hop >= request.hops:
                raise PrepareError(f"ranges[{i}].hop", f"{spec.hop}, the plan has {request.hops} hops")
            if not spec.next:
                raise PrepareError(f"ranges[{i}].next", "the address of the next hop is missing")
        if len({spec.hop for spec in request.ranges}) != len(request.ranges):
            raise PrepareError("ranges", "a hop stands twice")
        blocks = {b for spec in request.ranges for b in range(spec.start, spec.stop)}
        with self._lock:
            held = {
                b
                for epoch in self._epochs.values()
                for hop in epoch.hops.values()
                for b in range(hop.loaded.start, hop.loaded.stop)
            }
            kv_now = max((epoch.budget_bytes for epoch in self._epochs.values()), default=0)
        if self.memory_limit_bytes:
            itemsize = DTYPES[dtype][1].itemsize
            weights = sum(index.block_weight_bytes(b, itemsize) for b in blocks | held)
            rows = sum(spec.stop - spec.start for spec in request.ranges)
            per_token = index.kv_bytes_per_token(itemsize)
            # The KV of the running epoch is freed before the next one fills its own, so the larger counts.
            kv = max(kv_now, rows * per_token * request.kv_budget_tokens)
            if weights + kv > self.memory_limit_bytes:
                raise PrepareError(
                    "ranges",
                    f"{self.node} would need {weights + kv} bytes ({weights} of weights for {len(blocks | held)} blocks, "
                    f"{kv} of KV), its limit is {self.memory_limit_bytes}; give it fewer blocks, or lower "
                    "kv_budget_tokens",
                )
        return dtype

    def commit(self, epoch: int) -> HostEpoch:
        """The entry switches to ``epoch``: sessions of older epochs are freed.

        Raises:
            PrepareError: the epoch was not prepared here.
        """
        with self._lock:
            found = self._epochs.get(epoch)
            if found is None:
                raise PrepareError("epoch", f"{epoch} was not prepared on {self.node}")
            found.committed = True
            older = [e for e in self._epochs.values() if e.epoch < epoch]
        for past in older:
            for hop in past.hops.values():
                hop.close()
        return found

    def release(self, epoch: int) -> None:
        """Drop every range of exactly this epoch; one that is not here is no error (a release may come twice)."""
        with self._lock:
            gone = self._epochs.pop(epoch, None)
        if gone is not None:
            for hop in gone.hops.values():
                hop.close()
                hop.loaded.drop()

    @property
    def kv_bytes(self) -> int:
        """KV reserved over all epochs."""
        return sum(hop.loaded.kv_bytes for epoch in self.epochs for hop in epoch.hops.values())

    def states(self) -> list[pb.RangeState]:
        """One line per loaded range."""
        return [
            pb.RangeState(
                epoch=epoch.epoch,
                hop=number,
                start=hop.loaded.start,
                stop=hop.loaded.stop,
                weight_bytes=hop.loaded.weight_bytes,
                kv_bytes=hop.loaded.kv_bytes,
                kv_budget_bytes=hop.loaded.kv_bytes_per_token * hop.expected.kv_budget_tokens,
                sessions=len(hop.capacities),
            )
            for epoch in self.epochs
            for number, hop in sorted(epoch.hops.items())
        ]
