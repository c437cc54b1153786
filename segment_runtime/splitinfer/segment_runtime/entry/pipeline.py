"""The pipeline: feeds micro-batches into the chain and turns what comes back into tokens.

Prompt, token ids and logits stay in this process: what leaves it are hidden states.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.channel import FrameLink, LinkError
from splitinfer.segment_runtime.engine.port import LoadedHead
from splitinfer.segment_runtime.entry.answers import Answers
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.entry.fingerprint import fingerprint
from splitinfer.segment_runtime.entry.flight import Flight
from splitinfer.segment_runtime.entry.frames import TokensRefused, check_return, frame_of, release_frame
from splitinfer.segment_runtime.entry.generate import (
    GenerationRequest,
    NotReady,
    PipelineFailed,
)
from splitinfer.segment_runtime.entry.head import HeadThread
from splitinfer.segment_runtime.entry.live import TokenStream
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.observed import Observed
from splitinfer.segment_runtime.entry.requests import RETRY_AFTER_SECONDS, Requests
from splitinfer.segment_runtime.entry.scheduler import Scheduler
from splitinfer.segment_runtime.entry.sessions import MicroBatch
from splitinfer.segment_runtime.entry.settings import Settings
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import FrameError

log = structlog.get_logger()

MAX_FAILURES = 2
"""A session that failed more steps than this with nobody else in them is given up; others are replayed."""

STEP_CODES = (pb.BAD_FRAME, pb.KV_EXHAUSTED, pb.COMPUTE_FAILED, pb.ABANDONED)
"""Errors of one step; the chain is whole."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What serves one epoch."""

    plan: Plan
    link: FrameLink
    embedder: Embedder
    head: LoadedHead


def _nobody_minds(_what: object) -> None:
    """Until a coordinator listens."""


class Pipeline:
    """Implements the generation port over a chain of hosts. Lives on one event loop."""

    def __init__(
        self,
        model_name: str,
        hidden_size: int,
        max_model_tokens: int,
        settings: Settings,
        metrics: PipelineMetrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model_name = model_name
        self._hidden_size = hidden_size
        self._max_model_tokens = max_model_tokens
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.observed = Observed(metrics)
        self._head = HeadThread(metrics, clock)
        self._scheduler = Scheduler(replace(settings.scheduler, kv_budget_tokens=0))
        self._requests = Requests(self._scheduler, clock)
        self._answers = Answers(self._scheduler, self._requests, self.observed, self._head, clock)
        self.flight = Flight()
        self._plan: Plan | None = None
        self._chain: Chain | None = None
        """None: no plan yet, or the chain is broken."""
        self.system_fingerprint = ""
        """Of the chain that serves, or served last; nothing is computed before the first."""
        self._paused = True
        self._wake = asyncio.Event()
        self._returned: asyncio.Queue[tuple[int, pb.Frame, float]] = asyncio.Queue()
        self._background: set[asyncio.Task[None]] = set()
        self.on_broken: Callable[[str], None] = _nobody_minds
        self.on_given_up: Callable[[int], None] = _nobody_minds
        """Told of a session whose KV the hosts may free without waiting for the next frame."""
        self.closing: str | None = None
        """Why no request is taken any more: the process ends. No change of plan takes it back."""
        self.refusing: str | None = None
        """Why no request is taken though a plan served once; set by the coordinator when it gives up for now."""
        self.next_context: int | None = None
        """Context of a plan that is about to serve: no request is taken that would not fit it."""

    # --- the generation port -----------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Served name."""
        return self._model_name

    @property
    def max_context_tokens(self) -> int:
        """Prompt and output together, by the plan that serves and the one that is about to."""
        now = self._plan.max_context_tokens if self._plan else self._max_model_tokens
        return now if self.next_context is None else min(now, self.next_context)

    @property
    def plan(self) -> Plan | None:
        """The plan that serves, or served last."""
        return self._plan

    @property
    def epoch(self) -> int:
        """Epoch of that plan; 0 before the first."""
        return self._plan.epoch if self._plan else 0

    def ready(self) -> bool:
        """Whether a whole pipeline answers now, and takes requests."""
        return self._chain is not None and not self._paused and not (self.closing or self.refusing)

    def recent(self) -> dict[str, Any]:
        """What was served lately under this plan, as JSON."""
        return self.observed.recent.report(self._clock())

    def sessions(self) -> tuple[int, int]:
        """(running, waiting)."""
        return len(self._scheduler.running), len(self._scheduler.waiting)

    @property
    def largest_session_tokens(self) -> int:
        """KV tokens of the largest session that lives; a new plan must have room for it."""
        return max((session.capacity for session in self._scheduler.live), default=0)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Admit a request. See the port."""
        if reason := self.closing or (self.refusing if self._plan else "no plan serves yet"):
            raise NotReady(reason, RETRY_AFTER_SECONDS)
        stream = self._requests.submit(request, self.max_context_tokens, self._cancel)
        self._look()
        return stream

    def _cancel(self, session: int) -> None:
        alone = self._scheduler.is_alone(session)
        live = self._requests.forget(session)
        if live is not None:
            if alone and live.session.opened:
                # A release waits for the step before it, and a long chunk of a prompt takes seconds.
                self.on_given_up(session)
            self._look()

    def _look(self) -> None:
        """Something changed: there may be a step to start, or KV to release."""
        self._gauges()
        self._wake.set()

    def _gauges(self) -> None:
        running, waiting = self.sessions()
        self._metrics.running.set(running)
        self._metrics.waiting.set(waiting)
        self._metrics.in_flight.set(len(self._scheduler.in_flight))

    # --- changes of plan, called by the coordinator --------------------------------------------

    async def pause(self) -> None:
        """Start no more steps and wait for those in flight: a token boundary. `halt` ends the wait too."""
        self._paused = True
        await self.flight.landed()

    def halt(self) -> None:
        """Start no more steps and give up those in flight: the chain is broken."""
        self._paused = True
        self._scheduler.in_flight.clear()
        self.flight.give_up()
        chain, self._chain = self._chain, None
        if chain is not None:
            self._later(chain.link.close())
        self._gauges()

    def switch(
        self,
        plan: Plan,
        link: FrameLink,
        embedder: Embedder,
        head: LoadedHead,
        ranges: Sequence[pb.Identity],
    ) -> None:
        """Serve ``plan`` from now on; live sessions are replayed through it.

        ``ranges`` says what computes each hop. If one of them is exact, generated tokens are replayed one by one, because
        that gives them the bits they had.

        Without an await: a loss of the new chain is reported either before (and seen by the coordinator) or
        after (and seen here), never in between.
        """
        old = self._chain
        replayed = sum(session.position for session in self._scheduler.running.values())
        self._metrics.replayed_tokens.inc(replayed)
        self._plan = plan
        self._chain = Chain(plan, link, embedder, head)
        self.system_fingerprint = fingerprint(plan, ranges, head.identity)
        self.flight.give_up()
        unfit = self._scheduler.reset(
            replace(
                self._settings.scheduler,
                kv_budget_tokens=plan.kv_budget_tokens,
                max_in_flight=self._settings.micro_batches or len(plan.segments),
                replay_singly=any(identity.exact for identity in ranges),
            )
        )
        for session in unfit:
            reason = f"the new plan has room for {plan.kv_budget_tokens} tokens, the request needs {session.capacity}"
            self._requests.fail(self._requests[session.id], PipelineFailed(reason))
        self._metrics.epoch.set(plan.epoch)
        self.observed.recent.clear()
        self._paused = False
        self.refusing = self.next_context = None
        self._look()
        if old is not None:
            self._later(old.link.close())

    def resume(self) -> None:
        """Go on under the plan that serves, after a change that was given up before its commit."""
        self._paused = self._chain is None
        self._wake.set()

    def fail_all(self, reason: str) -> None:
        """End every live request with an error."""
        self._requests.fail_all(PipelineFailed(reason))
        self._look()

    async def drain(self, grace_seconds: float) -> None:
        """Wait until no request lives, at most ``grace_seconds``; what is left then is failed."""
        if not await self._requests.drain(grace_seconds):
            reason = "the entry shut down before the request was finished"
            self._requests.fail_all(NotReady(reason, RETRY_AFTER_SECONDS))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pump steps and take returns until cancelled; then the chain is let go of."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(), name="pump")
                group.create_task(self._take_returns(), name="returns")
                group.create_task(self._watch(), name="watch")
        finally:
            self.halt()
            self._head.close()

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self._paused and (chain := self._chain) is not None:
                frame = self._next_frame(chain)
                if frame is None:
                    break
                try:
                    await chain.link.send(frame)
                except LinkError:
                    break  # the link has reported it as lost, or the chain was changed meanwhile
            self._gauges()

    def _next_frame(self, chain: Chain) -> pb.Frame | None:
        """The next micro-batch as a frame, else a frame of releases, else None."""
        while (batch := self._scheduler.next_batch()) is not None:
            began = self._clock()
            try:
                frame = frame_of(batch, chain.plan, chain.embedder)
            except TokensRefused as error:
                # One session's tokens. The others of the batch begin anew; nothing has left this process.
                self._scheduler.rewind(batch.step)
                self._requests.fail(self._requests[error.session], PipelineFailed(str(error)))
                continue
            self._note_sent(batch)
            self._metrics.step_seconds.labels("embed").observe(self._clock() - began)
            return frame
        released = self._scheduler.take_released()
        if not released:
            return None
        return release_frame(self._scheduler.next_step(), released, chain.plan, chain.embedder)

    def _note_sent(self, batch: MicroBatch) -> None:
        now = self._clock()
        self.flight.sent(batch.step, now)
        self._metrics.rows.inc(batch.rows)
        for piece in batch.slices:
            if (live := self._requests.get(piece.session)) is not None:
                self.observed.started(live, now)

    def on_frame(self, epoch: int, frame: pb.Frame) -> None:
        """From the return stream of ``epoch``."""
        self._returned.put_nowait((epoch, frame, self._clock()))

    def on_error(self, error: pb.StreamError) -> None:
        """A typed error came back along the chain."""
        self._metrics.step_errors.labels(pb.ErrorCode.Name(error.code).lower()).inc()
        if error.epoch != self.epoch:
            return
        where = f"hop {error.hop} on {error.node}: {error.field + ': ' if error.field else ''}{error.message}"
        if error.code in STEP_CODES and (batch := self._scheduler.in_flight.get(error.step)) is not None:
            if error.code != pb.ABANDONED:
                log.warning("step failed", step=error.step, reason=where)
            for session in self._scheduler.rewind(error.step):
                live = self._requests[session]
                # Not the one that broke it, perhaps: only a step of its own speaks against a session.
                live.failures += len(batch.slices) == 1
                if live.failures > MAX_FAILURES:
                    self._requests.fail(live, PipelineFailed(where))
            self._after_step(error.step)
        elif error.code != pb.DRAINING:
            self.on_broken(where)

    async def _take_returns(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            epoch, frame, received = await self._returned.get()
            chain, batch = self._chain, self._scheduler.in_flight.get(frame.step)
            if chain is None or epoch != chain.plan.epoch or batch is None:
                continue  # of a step that was given up, or a frame that only released
            if batch.slices and not frame.sessions:
                continue  # its rows failed at a host, whose error has the longer way: this only carried a release
            try:
                check_return(frame, batch, chain.plan, self._hidden_size)
            except FrameError as error:
                self.on_broken(f"the last hop returned a bad frame: {error}")
                continue
            began = self._clock()
            drawn = await self._answers.draw(chain.head, frame, batch)
            if self._scheduler.in_flight.get(frame.step) is not batch:
                continue  # the plan changed, or the chain broke, while the head computed
            in_flight = len(self._scheduler.in_flight)
            done = self._scheduler.complete(frame.step)
            self.flight.completed += 1
            ring = received - self.flight.when(frame.step)
            tokens = self._answers.take(drawn, done)
            self._after_step(frame.step)
            # Behind the pump, which this has just woken: hosts wait for the next step, and to write to many clients
            # takes milliseconds. Not in this task, so that its end cannot come between a token and its stream.
            loop.call_soon(self._answers.deliver, tokens)
            loop.call_soon(self.observed.step, frame, received, ring, began - received, in_flight)

    def _after_step(self, step: int) -> None:
        self.flight.over(step, self._clock())
        self._look()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._settings.step_seconds / 4))
            seconds = self._settings.step_seconds
            if (step := self.flight.overdue(self._clock(), seconds)) is not None:
                self.on_broken(f"step {step} got no answer in {seconds:g} s")
