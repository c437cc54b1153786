"""The coordinator: keeps the pipeline on the plan that is wanted, and recovers when a host is lost.

The first plan, a moved cut, a moved segment and a recovery are one path, `_change`. The operator may be gone at
any moment of it: the entry finishes or gives up alone. One task does all of it; what others call here only notes
what is wanted and wakes that task (level-triggered). What to do is decided in `decide`, how it is done is in
`changes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import structlog

from splitinfer.optimizer.plan import Plan, PlanError
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.admission import Live, PlanRejected, check_plan, check_sessions
from splitinfer.segment_runtime.entry.breakage import RETRY_SECONDS, Breakage
from splitinfer.segment_runtime.entry.changes import ChangeFailed, Clients, Identities
from splitinfer.segment_runtime.entry.decide import Situation, after_failure, next_plan, room_for_blocks
from splitinfer.segment_runtime.entry.heads import Heads
from splitinfer.segment_runtime.entry.joining import Joining
from splitinfer.segment_runtime.entry.members import Members
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.store.reader import StoredModel

log = structlog.get_logger()

SWEEP_SECONDS = 5.0
"""How often a host that did not answer a sweep is asked again; until then it may hold weights that nobody uses."""


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
        self._pipeline = pipeline
        self._return_address = return_address
        self._metrics = metrics
        self._clock = clock
        self.members = Members()
        self._heads = Heads(model, engine)
        self._joining = Joining(pipeline, returns, self.draining, self.broken)
        self._target: Plan | None = None
        self._attempts = 0
        """How often the target broke at its commit."""
        self._epoch = 0
        self.breakage = Breakage(
            lambda: (pipeline.flight.started, pipeline.flight.completed), recovery_seconds, self._give_up
        )
        self._wake = asyncio.Event()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._changing: Plan | None = None
        self.last_error: str | None = None
        self._failed = False
        pipeline.on_broken = self.broken
        pipeline.on_given_up = self._forget_session

    def accept(self, plan: Plan, hosts: Mapping[str, str]) -> None:
        """Take a plan as the one to serve next; the change happens in `run`.

        Raises:
            PlanRejected: it does not fit the model, the hosts or the sessions that live.
            StalePlan: not newer than the epoch that was seen last.
        """
        check_plan(plan, hosts, self._model, self._epoch, self._live())
        self.update_hosts(hosts)
        self._epoch = plan.epoch
        self._target, self._attempts = plan, 0
        self._limit_context()
        if self.breakage.reason is None:
            self._failed = False
        self._wake.set()

    def update_hosts(self, hosts: Mapping[str, str]) -> None:
        """New addresses of hosts; a host that restarted has another one."""
        self.members.update(hosts)
        self._wake.set()

    def broken(self, reason: str) -> None:
        """The chain is broken: stop at once, recover in `run`, and fail the requests if that takes too long."""
        # Further reports of the same break are no news, and must not cut short the pause before a retry.
        if self.breakage.broke(reason):
            log.warning("pipeline broken", epoch=self._pipeline.epoch, reason=reason)
            self.last_error = reason
            self._wake.set()
        self._pipeline.halt()

    def _give_up(self) -> None:
        """The deadline: whoever waits learns that it was in vain. The recovery goes on."""
        broken = self.breakage.reason
        reason = f"the pipeline is broken ({broken}) and has not recovered: {self.last_error}"
        if broken is not None:
            self._failed = True
            log.error("recovery deadline", reason=reason)
            self._pipeline.refusing = reason
        # Else it was committed once more, as little proven as those before: the requests end, new ones may try it.
        self._pipeline.fail_all(reason)

    def draining(self, node: str) -> None:
        """A host says that it is about to leave."""
        if self.members.leaves(node):
            self._wake.set()

    def _forget_session(self, session: int) -> None:
        if (plan := self._pipeline.plan) is not None:
            self.members.forget(plan, session)

    async def close(self) -> None:
        """Close the connections to the hosts; they keep what they have."""
        self.breakage.cancel()
        await self.members.close()

    @property
    def state(self) -> str:
        """``empty``, ``preparing``, ``serving``, ``recovering`` or ``failed``."""
        if self._failed:
            return "failed"
        if self.breakage.reason is not None:
            return "recovering"
        if self._changing is not None or self._newer_target():
            return "preparing"
        return "serving" if self._pipeline.plan else "empty"

    @property
    def newest_epoch(self) -> int:
        """Newest epoch that was seen; a plan must be newer."""
        return self._epoch

    @property
    def target_epoch(self) -> int | None:
        """Epoch that is being prepared."""
        plan = self._changing or self._newer_target()
        return plan.epoch if plan else None

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes loaded and to load of the change that runs."""
        loaded = self._loaded.values()
        return sum(done for done, _ in loaded), sum(total for _, total in loaded)

    def _newer_target(self) -> Plan | None:
        target = self._target
        return target if target is not None and target.epoch > self._pipeline.epoch else None

    def _limit_context(self) -> None:
        """Requests must fit every plan that may serve next: the one that is prepared, and one that came meanwhile."""
        coming = [plan for plan in (self._changing, self._newer_target()) if plan is not None]
        self._pipeline.next_context = min((plan.max_context_tokens for plan in coming), default=None)

    def _leaving(self) -> set[str]:
        plan = self._pipeline.plan
        return self.members.draining & set(plan.nodes) if plan else set()

    def _situation(self) -> Situation:
        broken = self.breakage.reason is not None
        return Situation(self._pipeline.plan, self._newer_target(), broken, bool(self._leaving()))

    async def run(self) -> None:
        """Serve what is wanted until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS if self.members.unswept else None):
                    await self._wake.wait()
            self._wake.clear()
            while self._situation().cause is not None:
                await self._once()
            if self.members.unswept and (serving := self._pipeline.plan) is not None:
                await self.members.sweep(serving)

    async def _once(self) -> None:
        """One change, or what follows from its failure."""
        if self.breakage.fruitless:
            await self._pause_for(self.breakage.pause_seconds)
        before = self._situation()
        plan: Plan | None = None
        try:
            plan = await self._choose(before)
            await self._change(plan)
        except (ChangeFailed, PlanError) as error:
            self._metrics.plan_changes.labels(before.cause, "failed").inc()
            self.last_error = str(error)
            log.warning("change of plan failed", cause=before.cause, reason=str(error))
            refused = isinstance(error, ChangeFailed) and error.refused
            await self._after_failure(plan, refused=refused)
        else:
            self._metrics.plan_changes.labels(before.cause, "done").inc()
            self.last_error = None

    async def _choose(self, now: Situation) -> Plan:
        """The plan to change to. Raises PlanError."""
        if now.cause == "request":
            return next_plan(now, {}, self._epoch + 1)
        views = await self.members.views()
        base = now.serving or now.target
        assert base is not None, now
        states = {node: view.state for node, view in views.items() if view.state is not None}
        limits = {node: state.memory_limit_bytes for node, state in states.items() if not state.draining}
        room = room_for_blocks(base, self._model.index, limits)
        return next_plan(now, room, self._epoch + 1)

    async def _after_failure(self, tried: Plan | None, *, refused: bool) -> None:
        now = self._situation()
        verdict = after_failure(now, tried, refused=refused, attempts=self._attempts)
        if verdict.drop_target:
            self._target = None
        self._limit_context()
        if not verdict.keep_leaving:
            self.members.draining -= self._leaving()
        self._failed = self._failed or verdict.failed
        if verdict.again:
            self.breakage.recoveries += 1
            await self._pause_for(RETRY_SECONDS)
        elif not now.broken:
            self._pipeline.resume()

    async def _pause_for(self, seconds: float) -> None:
        """Wait before the next try; a new plan or a new address of a host ends the wait."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _change(self, plan: Plan) -> None:
        """Prepare, token boundary, commit; the old epoch is swept afterwards. Raises ChangeFailed."""
        self._changing = plan
        self._loaded = {}
        self._limit_context()
        try:
            clients = self.members.clients(plan.nodes)
            # What is left of a broken epoch is worth keeping, because the repair shares most of its blocks. But it
            # takes room, so a repair that failed once does without.
            again = self.breakage.reason is not None and self.breakage.recoveries
            keep = None if again else self._pipeline.plan
            fenced = await changes.fence(plan, clients, keep)
            if self._target is plan:
                self._target = fenced
            self._changing = plan = fenced
            self._epoch = max(self._epoch, plan.epoch)
            log.info("preparing", epoch=plan.epoch, segments=[str(s) for s in plan.segments])
            await self._heads.load(plan.dtype)
            ranges = await changes.prepare(plan, clients, self._return_address, self._note_loaded)
            began = self._clock()
            if self.breakage.reason is None:
                await self._pipeline.pause()
            try:
                check_sessions(plan, self._live())
            except PlanRejected as error:
                await changes.release(plan.epoch, clients)
                raise ChangeFailed(f"sessions came while it was prepared: {error}", refused=True) from error
            await self._commit(plan, clients, ranges)
            self._metrics.stall_seconds.observe(self._clock() - began)
            log.info("serving", epoch=plan.epoch)
            self.members.to_sweep()
        finally:
            self._changing = None
            self._limit_context()

    def _live(self) -> Live:
        pipeline = self._pipeline
        return Live(pipeline.plan, sum(pipeline.sessions()), pipeline.largest_session_tokens)

    def _note_loaded(self, node: str, done: int, total: int) -> None:
        self._loaded[node] = (done, total)

    async def _commit(self, plan: Plan, clients: Clients, ranges: Identities) -> None:
        """Switch all hosts, then the entry. From here on a failure is a broken chain."""
        try:
            link = await self._joining.join(plan, clients)
        except ChangeFailed as error:
            if self._target is plan:
                self._attempts += 1
            if self._pipeline.plan is not None:
                self.broken(f"commit of epoch {plan.epoch} failed: {error}")
            raise
        # No await from here to the switch, see `Joining.join`.
        self.breakage.mended()
        self._failed = False
        embedder, head = self._heads.keep_only(plan.dtype)
        self._pipeline.switch(plan, link, embedder, head, ranges)
