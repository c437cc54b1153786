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

from splitinfer.optimizer.plan import DTypeName, Plan, PlanError, activation_of, weight_bytes
from splitinfer.segment_runtime.engine.port import Engine, EngineError, LoadedHead
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.admission import Live, check_plan
from splitinfer.segment_runtime.entry.breakage import Breakage
from splitinfer.segment_runtime.entry.changes import ChangeFailed
from splitinfer.segment_runtime.entry.decide import Situation, after_failure, next_plan
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.entry.hosts import HostClient
from splitinfer.segment_runtime.entry.members import Members
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.store.errors import StoreError
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.wire import DTYPES

log = structlog.get_logger()

RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 10.0
"""How often a recovery looks again whether a host has come back: nobody may be there to say so."""
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
        self._engine = engine
        self._pipeline = pipeline
        self._returns = returns
        self._return_address = return_address
        self._metrics = metrics
        self._clock = clock
        self.members = Members()
        self._heads: dict[str, tuple[Embedder, LoadedHead]] = {}
        self._target: Plan | None = None
        self._attempts = 0
        """How often the target broke at its commit."""
        self._epoch = 0
        self.breakage = Breakage(
            lambda: (pipeline.steps_started, pipeline.steps_completed), recovery_seconds, self._give_up
        )
        self._wake = asyncio.Event()
        self._loaded: dict[str, tuple[int, int]] = {}
        self._changing: Plan | None = None
        self._early: str | None = None
        """What broke in the chain that is being committed, before it serves."""
        self.last_error: str | None = None
        self._failed = False
        pipeline.on_broken = self.broken
        pipeline.on_given_up = self._forget_session

    # --- what others say ---------------------------------------------------------------------------

    def accept(self, plan: Plan, hosts: Mapping[str, str]) -> None:
        """Take a plan as the one to serve next; the change happens in `run`.

        Raises:
            PlanRejected: it does not fit the model, the hosts or the sessions that live.
            StalePlan: not newer than the epoch that was seen last.
        """
        live = Live(
            self._pipeline.plan, sum(self._pipeline.sessions()), self._pipeline.largest_session_tokens
        )
        check_plan(plan, hosts, self._model, self._epoch, live)
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

    # --- what the status says ----------------------------------------------------------------------

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

    # --- the task --------------------------------------------------------------------------------------

    def _newer_target(self) -> Plan | None:
        target = self._target
        return target if target is not None and target.epoch > self._pipeline.epoch else None

    def _limit_context(self) -> None:
        """Requests must fit every plan that may serve next: the one that is prepared, and one that came meanwhile."""
        coming = [
            plan.max_context_tokens for plan in (self._changing, self._newer_target()) if plan is not None
        ]
        self._pipeline.next_context = min(coming, default=None)

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
            await self._pause_for(
                min(RETRY_SECONDS * 2 ** (self.breakage.fruitless - 1), LONGEST_RETRY_SECONDS)
            )
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
        index = self._model.index
        block = max(weight_bytes(index.block_values(b), base.dtype) for b in range(base.blocks))
        block += index.kv_bytes_per_token(DTYPES[base.activation][1].itemsize) * base.kv_budget_tokens
        room = {
            node: view.state.memory_limit_bytes // block if view.state.memory_limit_bytes else base.blocks
            for node, view in views.items()
            if view.state is not None and not view.state.draining
        }
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
            keep = (
                None
                if self.breakage.reason is not None and self.breakage.recoveries
                else self._pipeline.plan
            )
            fenced = await changes.fence(plan, clients, keep)
            if self._target is plan:
                self._target = fenced
            self._changing = plan = fenced
            self._epoch = max(self._epoch, plan.epoch)
            log.info("preparing", epoch=plan.epoch, segments=[str(s) for s in plan.segments])
            await self._load_head(plan.dtype)
            exact = await changes.prepare(plan, clients, self._return_address, self._note_loaded)
            began = self._clock()
            if self.breakage.reason is None:
                await self._pipeline.pause()
            await self._check_sessions(plan, clients)
            await self._commit(plan, clients, exact=exact)
            self._metrics.stall_seconds.observe(self._clock() - began)
            log.info("serving", epoch=plan.epoch)
            self.members.to_sweep()
        finally:
            self._changing = None
            self._limit_context()

    async def _check_sessions(self, plan: Plan, clients: Mapping[str, HostClient]) -> None:
        """What `accept` asked of the sessions must hold for those that came since. Raises ChangeFailed."""
        serving = self._pipeline.plan
        if serving is not None and plan.dtype != serving.dtype and any(self._pipeline.sessions()):
            await changes.release(plan.epoch, clients)
            raise ChangeFailed(
                f"plan.dtype: sessions began in {serving.dtype} while {plan.dtype} was prepared, and would go on with "
                "other tokens; post the plan again when they have ended",
                refused=True,
            )

    def _note_loaded(self, node: str, done: int, total: int) -> None:
        self._loaded[node] = (done, total)

    async def _load_head(self, dtype: DTypeName) -> None:
        if dtype in self._heads:
            return
        loop = asyncio.get_running_loop()
        try:
            embedder = await loop.run_in_executor(None, Embedder, self._model, activation_of(dtype))
            head = await loop.run_in_executor(None, self._engine.load_head, self._model, dtype)
        except (EngineError, StoreError) as error:
            raise ChangeFailed(f"entry: {error}", refused=True) from error
        self._heads[dtype] = (embedder, head)

    async def _commit(self, plan: Plan, clients: Mapping[str, HostClient], *, exact: bool) -> None:
        """Switch all hosts, then the entry. From here on a failure is a broken chain."""
        self._early = None
        self._returns.expect(plan.epoch, len(plan.segments))
        try:
            link = await changes.commit(
                plan, clients, self._on_error, lambda reason: self._on_lost(plan.epoch, reason)
            )
            if (defect := self._defect(plan.epoch)) is not None:
                await link.close()
                raise ChangeFailed(defect, refused=False)
        except ChangeFailed as error:
            if self._target is plan:
                self._attempts += 1
            if self._pipeline.plan is not None:
                self.broken(f"commit of epoch {plan.epoch} failed: {error}")
            raise
        # No await from the check to here and on: what breaks later is reported for the epoch that serves.
        self.breakage.mended()
        self._failed = False
        embedder, head = self._heads[plan.dtype]
        self._heads = {plan.dtype: (embedder, head)}
        self._pipeline.switch(plan, link, embedder, head, replay_singly=exact)

    def _defect(self, epoch: int) -> str | None:
        """What is known already to be broken in a chain that was just committed."""
        if self._early is None and not self._returns.is_open(epoch):
            return "the last hop closed the return stream"
        return self._early

    def _on_error(self, error: pb.StreamError) -> None:
        if error.code == pb.DRAINING:
            self.draining(error.node)
        elif error.epoch != self._pipeline.epoch:
            self._early = f"hop {error.hop} on {error.node}: {error.message}"
        self._pipeline.on_error(error)

    def _on_lost(self, epoch: int, reason: str) -> None:
        if epoch == self._pipeline.epoch:
            self.broken(reason)
        else:
            self._early = reason
