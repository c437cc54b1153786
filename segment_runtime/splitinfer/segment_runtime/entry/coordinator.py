"""The coordinator: drives the hosts through prepare, commit and release, and recovers when a host is lost.

The first plan, a moved cut, a moved segment and a recovery are one path, `_change`. The operator may be gone at
any moment of it: the entry finishes or gives up alone. One task does all of it; what others call here only notes
what is wanted and wakes that task (level-triggered).

Errors
------
PlanRejected              a plan that this entry cannot serve; `field` names why
└── StalePlan             its epoch is not newer than what was seen
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from splitinfer.optimizer.plan import Plan, PlanError
from splitinfer.optimizer.redistribute import redistribute
from splitinfer.segment_runtime.channel import FrameLink, LinkError
from splitinfer.segment_runtime.engine.port import Engine, EngineError, LoadedHead
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.entry.hosts import HostClient, HostError
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.wire import DTYPES

log = structlog.get_logger()

DESCRIBE_SECONDS = 2.0
COMMIT_SECONDS = 20.0
RELEASE_SECONDS = 20.0
RETRY_SECONDS = 1.0
"""How often a recovery looks again whether a host has come back: nobody may be there to say so."""


class PlanRejected(Exception):
    """A plan that this entry cannot serve."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class StalePlan(PlanRejected):
    """Its epoch is not newer than what was seen."""


class ChangeFailed(Exception):
    """A change that was given up. ``refused``: a host said no, so the same plan would fail again."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as last seen."""

    address: str
    state: pb.HostState | None


class Coordinator:
    """Keeps the pipeline on the plan that is wanted, or on the best that can be done without its dead hosts."""

    def __init__(
        self,
        model: StoredModel,
        engine: Engine,
        pipeline: Pipeline,
        returns: ReturnService,
        return_address: str,
        metrics: PipelineMetrics,
        recovery_seconds: float = 120.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._engine = engine
        self._pipeline = pipeline
        self._returns = returns
        self._return_address = return_address
        self._metrics = metrics
        self._recovery_seconds = recovery_seconds
        self._clock = clock
        self._hosts: dict[str, HostClient] = {}
        self._heads: dict[str, tuple[Embedder, LoadedHead]] = {}
        self._target: Plan | None = None
        self._epoch = 0
        self._broken: str | None = None
        self._draining: set[str] = set()
        self._broken_since: float | None = None
        self._wake = asyncio.Event()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._changing: Plan | None = None
        self.last_error: str | None = None
        self._failed = False
        pipeline.on_broken = self.broken

    # --- what others say ---------------------------------------------------------------------------

    def accept(self, plan: Plan, hosts: Mapping[str, str]) -> None:
        """Take a plan as the one to serve next; the change happens in `run`.

        Raises:
            PlanRejected: it does not fit the model, the hosts or the sessions that live.
            StalePlan: not newer than the epoch that was seen last.
        """
        if plan.epoch <= self._epoch:
            raise StalePlan(
                "plan.epoch", f"{plan.epoch} is not newer than {self._epoch}; use {self._epoch + 1}"
            )
        index = self._model.index
        if plan.model.digest != self._model.digest:
            raise PlanRejected(
                "plan.model.digest",
                f"this entry serves {self._model.name} with digest {self._model.digest[:12]}...",
            )
        if plan.blocks != index.blocks:
            raise PlanRejected("plan.blocks", f"{plan.blocks}, {self._model.name} has {index.blocks}")
        if plan.max_context_tokens > index.max_context_tokens:
            raise PlanRejected(
                "plan.max_context_tokens",
                f"{plan.max_context_tokens}, {self._model.name} was made for {index.max_context_tokens}",
            )
        if missing := [node for node in plan.nodes if node not in hosts]:
            raise PlanRejected("hosts", f"no address for {', '.join(missing)}")
        largest = self._pipeline.largest_session_tokens
        if plan.max_context_tokens < largest:
            raise PlanRejected(
                "plan.max_context_tokens",
                f"{plan.max_context_tokens} is below a live session of {largest} tokens; wait for it to end",
            )
        self.update_hosts(hosts)
        self._epoch = plan.epoch
        self._target = plan
        self._failed = False
        self._wake.set()

    def update_hosts(self, hosts: Mapping[str, str]) -> None:
        """New addresses of hosts; a host that restarted has another one."""
        for node, address in hosts.items():
            known = self._hosts.get(node)
            if known is None or known.address != address:
                self._hosts[node] = HostClient(node, address)
                self._draining.discard(node)
                if known is not None:
                    task = asyncio.create_task(known.close())
                    self._closing = task
        self._wake.set()

    def broken(self, reason: str) -> None:
        """The chain is broken: stop at once, recover in `run`."""
        if self._broken is None:
            log.warning("pipeline broken", epoch=self._pipeline.epoch, reason=reason)
            self._broken = reason
            self._broken_since = self._clock()
        self._pipeline.halt()
        self._wake.set()

    def draining(self, node: str) -> None:
        """A host says that it is about to leave."""
        if node not in self._draining:
            log.info("host draining", node=node)
            self._draining.add(node)
            self._wake.set()

    async def close(self) -> None:
        """Close the connections to the hosts; they keep what they have."""
        await asyncio.gather(*(client.close() for client in self._hosts.values()))

    # --- what the status says ----------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``empty``, ``preparing``, ``serving``, ``recovering`` or ``failed``."""
        if self._failed:
            return "failed"
        if self._broken is not None:
            return "recovering"
        if self._changing is not None or self._newer_target():
            return "preparing"
        return "serving" if self._pipeline.plan else "empty"

    @property
    def target_epoch(self) -> int | None:
        """Epoch that is being prepared."""
        plan = self._changing or self._newer_target()
        return plan.epoch if plan else None

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes loaded and to load of the change that runs."""
        return sum(done for done, _ in self._loaded.values()), sum(
            total for _, total in self._loaded.values()
        )

    async def views(self) -> dict[str, HostView]:
        """Every known host, asked now."""
        clients = dict(self._hosts)
        states = await asyncio.gather(*(self._state(client) for client in clients.values()))
        return {
            node: HostView(client.address, state)
            for (node, client), state in zip(clients.items(), states, strict=True)
        }

    async def _state(self, client: HostClient) -> pb.HostState | None:
        try:
            return await client.describe(DESCRIBE_SECONDS)
        except HostError:
            return None

    # --- the task --------------------------------------------------------------------------------------

    def _newer_target(self) -> Plan | None:
        target = self._target
        return target if target is not None and target.epoch > self._pipeline.epoch else None

    def _leaving(self) -> set[str]:
        plan = self._pipeline.plan
        return self._draining & set(plan.nodes) if plan else set()

    async def run(self) -> None:
        """Serve what is wanted until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._broken is not None or self._newer_target() or self._leaving():
                if not await self._once():
                    break

    async def _once(self) -> bool:
        """One change. False: nothing more can be done before something else happens."""
        cause = "host_lost" if self._broken else "request" if self._newer_target() else "host_draining"
        try:
            plan = (
                self._newer_target() if self._broken is None and not self._leaving() else await self._repair()
            )
            assert plan is not None
            await self._change(plan)
        except (ChangeFailed, PlanError) as error:
            self._metrics.plan_changes.labels(cause, "failed").inc()
            self.last_error = str(error)
            log.warning("change of plan failed", cause=cause, reason=str(error))
            return await self._after_failure(error)
        self._metrics.plan_changes.labels(cause, "done").inc()
        self.last_error = None
        return True

    async def _after_failure(self, error: Exception) -> bool:
        if self._broken is None:
            # The old plan serves on. A target that was refused is given up; whoever wants it posts it again.
            if self._newer_target():
                self._target = None
            if self._pipeline.plan is None:
                self._failed = True
            else:
                self._pipeline.resume()
            # A draining host that cannot be replaced serves to the end of its grace, then it is lost.
            self._draining -= self._leaving()
            return True
        if self._pipeline.plan is None:
            # The first commit broke: nothing serves and nothing is to be saved.
            self._broken, self._target, self._failed = None, None, True
            return True
        if self._target is not None and isinstance(error, ChangeFailed) and error.refused:
            self._target = None
        assert self._broken_since is not None
        if self._clock() - self._broken_since > self._recovery_seconds and not self._failed:
            self._failed = True
            self._pipeline.fail_all(f"the pipeline is broken ({self._broken}) and could not recover: {error}")
            self._pipeline.refusing = f"the pipeline is broken: {error}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._wake.wait()
        self._wake.clear()
        return True

    async def _repair(self) -> Plan:
        """The plan to go on with when hosts are lost or leave. Raises PlanError."""
        views = await self.views()
        alive = {n: v.state for n, v in views.items() if v.state is not None and not v.state.draining}
        target = self._newer_target()
        if target is not None and all(node in alive for node in target.nodes):
            return target
        base = self._pipeline.plan or self._target
        if base is None:
            raise PlanError("plan", "there is none")
        epoch = self._epoch + 1
        if all(node in alive for node in base.nodes):
            return base.with_epoch(epoch)
        index, itemsize = self._model.index, DTYPES[base.dtype][1].itemsize
        block = max(index.block_weight_bytes(b, itemsize) for b in range(base.blocks))
        block += index.kv_bytes_per_token(itemsize) * base.kv_budget_tokens
        room = {
            node: state.memory_limit_bytes // block if state.memory_limit_bytes else base.blocks
            for node, state in alive.items()
        }
        segments = redistribute(base.segments, base.blocks, room)
        return base.model_copy(update={"epoch": epoch, "segments": segments})

    async def _change(self, plan: Plan) -> None:
        """Prepare -> token boundary -> commit -> release. Raises ChangeFailed."""
        self._changing = plan
        self._loaded = {}
        try:
            clients = {node: self._hosts[node] for node in plan.nodes}
            plan = await self._fenced(plan, clients)
            self._changing = plan
            log.info("preparing", epoch=plan.epoch, segments=[str(s) for s in plan.segments])
            await self._prepare(plan, clients)
            began = self._clock()
            if self._broken is None:
                await self._pipeline.pause()
            await self._commit(plan, clients)
            self._metrics.stall_seconds.observe(self._clock() - began)
            log.info("serving", epoch=plan.epoch)
            await self._sweep(plan.epoch)
        finally:
            self._changing = None

    async def _fenced(self, plan: Plan, clients: Mapping[str, HostClient]) -> Plan:
        """Give the plan an epoch that no host has seen, and have hosts drop what no entry serves any more.

        An entry that was restarted knows nothing of its predecessor's epochs; the hosts do.
        """
        serving = self._pipeline.epoch
        fence = 0
        for node, client in clients.items():
            try:
                state = await client.describe(DESCRIBE_SECONDS)
            except HostError as error:
                raise ChangeFailed(str(error), refused=False) from error
            fence = max(fence, state.fence)
            if state.draining:
                raise ChangeFailed(f"{node}: is shutting down", refused=False)
            if state.node != node:
                raise ChangeFailed(f"hosts.{node}: at {client.address} answers {state.node}", refused=True)
            for stale in {r.epoch for r in state.ranges} - {serving}:
                with contextlib.suppress(HostError):
                    await client.release(stale, RELEASE_SECONDS)
        if plan.epoch <= fence:
            plan = plan.with_epoch(fence + 1)
        if self._target is not None and self._target.digest == plan.digest:
            self._target = plan
        self._epoch = max(self._epoch, plan.epoch)
        return plan

    async def _prepare(self, plan: Plan, clients: Mapping[str, HostClient]) -> None:
        def next_of(hop: int) -> str:
            if hop + 1 == len(plan.segments):
                return self._return_address
            return self._hosts[plan.segments[hop + 1].node].address

        async def one(node: str, client: HostClient) -> None:
            request = pb.PrepareRequest(
                epoch=plan.epoch,
                plan_digest=plan.digest,
                model_name=plan.model.name,
                model_digest=plan.model.digest,
                dtype=DTYPES[plan.dtype][0],
                ranges=[
                    pb.RangeSpec(hop=hop, start=s.start, stop=s.stop, next=next_of(hop))
                    for hop, s in plan.ranges_of(node)
                ],
                kv_budget_tokens=plan.kv_budget_tokens,
                max_context_tokens=plan.max_context_tokens,
                node=node,
                hops=len(plan.segments),
            )

            def note(done: int, total: int) -> None:
                self._loaded[node] = (done, total)

            await client.prepare(request, note)

        results = await asyncio.gather(
            self._load_head(plan.dtype), *(one(n, c) for n, c in clients.items()), return_exceptions=True
        )
        if errors := [r for r in results if isinstance(r, BaseException)]:
            await self._release(plan.epoch, clients)
            for error in errors:
                if not isinstance(error, (HostError, EngineError, StoreError)):
                    raise error
            refused = any(not isinstance(e, HostError) or e.answered for e in errors)
            raise ChangeFailed("; ".join(str(e) for e in errors), refused=refused)

    async def _load_head(self, dtype: str) -> None:
        if dtype not in self._heads:
            loop = asyncio.get_running_loop()
            embedder = await loop.run_in_executor(None, Embedder, self._model, dtype)
            head = await loop.run_in_executor(None, self._engine.load_head, self._model, dtype)
            self._heads[dtype] = (embedder, head)

    async def _commit(self, plan: Plan, clients: Mapping[str, HostClient]) -> None:
        """Switch all hosts, then the entry. From here on a failure is a broken chain."""
        self._returns.expect(plan.epoch, len(plan.segments))
        results = await asyncio.gather(
            *(client.commit(plan.epoch, COMMIT_SECONDS) for client in clients.values()),
            return_exceptions=True,
        )
        errors = [r for r in results if isinstance(r, BaseException)]
        for error in errors:
            if not isinstance(error, HostError):
                raise error
        link = FrameLink(
            self._hosts[plan.segments[0].node].address,
            plan.epoch,
            0,
            on_error=self._on_error,
            on_lost=lambda reason: self._on_lost(plan.epoch, reason),
        )
        try:
            if errors:
                raise ChangeFailed("; ".join(str(e) for e in errors), refused=False)
            await link.open(COMMIT_SECONDS)
        except (ChangeFailed, LinkError) as error:
            self.broken(f"commit of epoch {plan.epoch} failed: {error}")
            raise ChangeFailed(str(error), refused=False) from error
        self._broken = self._broken_since = None
        self._failed = False
        embedder, head = self._heads[plan.dtype]
        await self._pipeline.switch(plan, link, embedder, head)

    def _on_error(self, error: pb.StreamError) -> None:
        if error.code == pb.DRAINING:
            self.draining(error.node)
        self._pipeline.on_error(error)

    def _on_lost(self, epoch: int, reason: str) -> None:
        if epoch == self._pipeline.epoch:
            self.broken(reason)

    async def _release(self, epoch: int, clients: Mapping[str, HostClient]) -> None:
        """Have hosts drop an epoch; one that does not answer has nothing left to drop, or is swept later."""
        await asyncio.gather(
            *(client.release(epoch, RELEASE_SECONDS) for client in clients.values()), return_exceptions=True
        )

    async def _sweep(self, serving: int) -> None:
        """Have every known host drop what is not of the epoch that serves."""

        async def one(client: HostClient) -> None:
            state = await client.describe(DESCRIBE_SECONDS)
            for stale in {r.epoch for r in state.ranges} - {serving}:
                await client.release(stale, RELEASE_SECONDS)

        await asyncio.gather(*(one(client) for client in self._hosts.values()), return_exceptions=True)
