"""What a host holds: epochs, the ranges of each, and the memory all that takes.

No socket and no clock. Three threads meet here: prepare runs on the loader's, commit and release on the compute
thread (as the steps do, so that no range goes away under one), and the loop reads. One lock guards the table of
epochs; what is in a `Hop` belongs to the compute thread, and others only read single values of it, or have it forget
sessions, for which it has a lock of its own.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from splitinfer.optimizer.plan import DTypeName, activation_of, weight_bytes
from splitinfer.segment_runtime.engine.port import Engine, Identity
from splitinfer.segment_runtime.host.hop import Hop
from splitinfer.segment_runtime.host.requests import (
    BlockKey,
    Held,
    PrepareError,
    blocks_of,
    check_memory,
    check_request,
)
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.reader import ModelStore, StoredModel
from splitinfer.segment_runtime.wire import Expectation


@dataclass(slots=True)
class HostEpoch:
    """The hops of one plan that are on this host.

    Attributes:
        blocks: weight bytes of each block that it holds, by what makes two blocks the same in memory.
        budget_bytes: KV that the plan may fill.
    """

    epoch: int
    digest: str
    hops: dict[int, Hop]
    blocks: dict[BlockKey, int]
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
        self._loading: set[int] = set()
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

    # --- prepare --------------------------------------------------------------------------------

    def prepare(self, request: pb.PrepareRequest, progress: Callable[[int, int], None]) -> HostEpoch:
        """Load the ranges of an epoch beside those that serve. Repeating it is harmless.

        Raises:
            PrepareError: the request does not fit this host, or was given up; nothing of it stays loaded.
            StoreError, EngineError: from the store and the engine.
        """
        epoch = request.epoch
        with self._lock:
            known = self._epochs.get(epoch)
            if known is not None and known.digest == request.plan_digest:
                return known
            if known is not None:
                raise PrepareError(
                    "epoch", f"{epoch} is prepared already, for another plan; use a newer epoch"
                )
            if epoch <= self._fence:
                raise PrepareError(
                    "epoch", f"{epoch} is fenced off: epoch {self._fence} was seen; use a newer one"
                )
            self._fence = epoch
            self._loading.add(epoch)
        hops: dict[int, Hop] = {}
        try:
            model = self._open_model(request)
            dtype = check_request(request, model)
            if self.memory_limit_bytes:
                check_memory(request, model, dtype, self._held(), self.memory_limit_bytes, self.node)
            self._load(request, model, dtype, hops, progress)
            budget = sum(hop.loaded.kv_bytes_per_token for hop in hops.values()) * request.kv_budget_tokens
            prepared = HostEpoch(epoch, request.plan_digest, hops, blocks_of(request, model, dtype), budget)
            with self._lock:
                self._check_wanted(epoch)
                self._epochs[epoch] = prepared
        except BaseException as error:
            for hop in hops.values():
                hop.loaded.drop()
            _let_go(error)
            raise
        finally:
            with self._lock:
                self._loading.discard(epoch)
        return prepared

    def _load(
        self,
        request: pb.PrepareRequest,
        model: StoredModel,
        dtype: DTypeName,
        hops: dict[int, Hop],
        progress: Callable[[int, int], None],
    ) -> None:
        total = sum(
            weight_bytes(model.index.block_values(b), dtype)
            for r in request.ranges
            for b in range(r.start, r.stop)
        )
        loaded_bytes = 0
        progress(0, total)
        for spec in request.ranges:

            def note(done: int, before: int = loaded_bytes) -> None:
                self._check_wanted(request.epoch)
                progress(min(before + done, total), total)  # a total of few bits is close, not exact

            loaded = self.engine.load_range(model, spec.start, spec.stop, dtype, note)
            hops[spec.hop] = Hop(
                expected=Expectation(
                    epoch=request.epoch,
                    hop=spec.hop,
                    dtype=activation_of(dtype),
                    hidden_size=model.index.hidden_size,
                    kv_budget_tokens=request.kv_budget_tokens,
                    max_context_tokens=request.max_context_tokens,
                ),
                loaded=loaded,
                next_address=spec.next,
                last=spec.hop == request.hops - 1,
            )
            loaded_bytes += loaded.weight_bytes

    def _check_wanted(self, epoch: int) -> None:
        if epoch not in self._loading:
            raise PrepareError("epoch", f"{epoch} was given up while it was loading")

    def abandon(self, epoch: int | None = None) -> None:
        """Nobody waits for this load (or for any) any more: it stops at the next block and is dropped."""
        with self._lock:
            if epoch is None:
                self._loading.clear()
            else:
                self._loading.discard(epoch)

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

    def _held(self) -> Held:
        with self._lock:
            epochs = list(self._epochs.values())
        blocks = {key: size for epoch in epochs for key, size in epoch.blocks.items()}
        return Held(blocks, max((epoch.budget_bytes for epoch in epochs), default=0))

    # --- commit and release -----------------------------------------------------------------------

    def commit(self, epoch: int) -> HostEpoch:
        """The entry switches to ``epoch``: older epochs lose their sessions and take no frame any more.

        Raises:
            PrepareError: the epoch was not prepared here, or a newer one was committed.
        """
        with self._lock:
            found = self._epochs.get(epoch)
            if found is None:
                raise PrepareError("epoch", f"{epoch} was not prepared on {self.node}")
            newest = max((e.epoch for e in self._epochs.values() if e.committed), default=0)
            if epoch < newest:
                raise PrepareError("epoch", f"{epoch} is fenced off: epoch {newest} serves")
            found.committed = True
            older = [e for e in self._epochs.values() if e.epoch < epoch]
        for past in older:
            for hop in past.hops.values():
                hop.fenced = f"epoch {epoch} serves"
                hop.close()
        return found

    def release(self, epoch: int) -> None:
        """Drop every range of exactly this epoch; one that is not here is no error (a release may come twice).

        One that loads is given up, and one that was not even asked for yet is fenced off.
        """
        with self._lock:
            gone = self._epochs.pop(epoch, None)
            self._loading.discard(epoch)
            self._fence = max(self._fence, epoch)
        if gone is not None:
            for hop in gone.hops.values():
                hop.fenced = "it was released"
                hop.close()
                hop.loaded.drop()

    def forget(self, epoch: int, sessions: Iterable[int]) -> None:
        """Free sessions that no frame will name again; one that is not here is no error."""
        with self._lock:
            found = self._epochs.get(epoch)
        for hop in found.hops.values() if found is not None else ():
            hop.forget(sessions)

    # --- what it says -------------------------------------------------------------------------------

    @property
    def kv_bytes(self) -> int:
        """KV reserved over all epochs."""
        return sum(hop.loaded.kv_bytes for epoch in self.epochs for hop in epoch.hops.values())

    @property
    def sessions(self) -> int:
        """Sessions with KV here; one that runs through several hops counts once."""
        hops = [hop for epoch in self.epochs for hop in epoch.hops.values()]
        return len({session for hop in hops for session in list(hop.capacities)})

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
                identity=identity_message(hop.loaded.identity),
            )
            for epoch in self.epochs
            for number, hop in sorted(epoch.hops.items())
        ]


def identity_message(identity: Identity) -> pb.Identity:
    """What an engine is, on the wire."""
    return pb.Identity(
        engine=identity.engine,
        version=identity.version,
        instruction_set=identity.instruction_set,
        exact=identity.exact,
    )


def _let_go(error: BaseException | None) -> None:
    """Clear the frames that an error came through: they hold the blocks that were loaded before it.

    Whoever waits for the load makes a cycle with its error, so that they would stay until the collector happens
    to run, which in a process that does nothing may be never.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
