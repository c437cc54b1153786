"""The pipeline: feeds micro-batches into the chain and turns what comes back into tokens.

Prompt, token ids and logits stay in this process: what leaves it are hidden states.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.channel import FrameLink, LinkError
from splitinfer.segment_runtime.engine.port import LoadedHead
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.entry.generate import (
    ContextTooLong,
    GenerationRequest,
    NotReady,
    PipelineFailed,
    Saturated,
    TokenEvent,
)
from splitinfer.segment_runtime.entry.live import LiveRequest, TokenStream
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.sampler import Sampled, SamplerError, sample
from splitinfer.segment_runtime.entry.scheduler import (
    Limits,
    MicroBatch,
    QueueFull,
    Scheduler,
    Session,
    Slice,
)
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import Expectation, FrameError, array_of, check_envelope, put_array

log = structlog.get_logger()

MAX_FAILURES = 2
"""A session whose steps fail more often than this is given up; fewer are replayed."""

RECENT = 512
"""TTFT and TPOT samples kept for the status."""

RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator of an entry may set.

    Attributes:
        scheduler: limits; the budget and the number of micro-batches come from the plan.
        micro_batches: micro-batches in flight; 0: one per segment.
        step_seconds: a step without an answer for this long breaks the pipeline.
    """

    scheduler: Limits
    micro_batches: int = 0
    step_seconds: float = 60.0


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
        self._scheduler = Scheduler(replace(settings.scheduler, kv_budget_tokens=0))
        self._live: dict[int, LiveRequest] = {}
        self._sent: dict[int, float] = {}
        self._next_id = 1
        self._plan: Plan | None = None
        self._link: FrameLink | None = None
        self._embedder: Embedder | None = None
        self._head: LoadedHead | None = None
        self._paused = True
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._ended = asyncio.Event()
        """Set when a request ends."""
        self._returned: asyncio.Queue[tuple[int, pb.Frame, float]] = asyncio.Queue()
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="head")
        self.on_broken: Callable[[str], None] = lambda reason: None
        self.refusing: str | None = None
        """Why no request is taken though a plan served once; set by the coordinator when it gives up for now."""
        self.recent_ttft: deque[float] = deque(maxlen=RECENT)
        self.recent_tpot: deque[float] = deque(maxlen=RECENT)
        self.tokens_total = 0

    # --- the generation port -----------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Served name."""
        return self._model_name

    @property
    def max_context_tokens(self) -> int:
        """Prompt and output together, by the plan that serves."""
        return self._plan.max_context_tokens if self._plan else self._max_model_tokens

    @property
    def plan(self) -> Plan | None:
        """The plan that serves, or served last."""
        return self._plan

    @property
    def epoch(self) -> int:
        """Epoch of that plan; 0 before the first."""
        return self._plan.epoch if self._plan else 0

    def ready(self) -> bool:
        """Whether a whole pipeline answers now."""
        return self._plan is not None and not self._paused

    def sessions(self) -> tuple[int, int]:
        """(running, waiting)."""
        return len(self._scheduler.running), len(self._scheduler.waiting)

    @property
    def largest_session_tokens(self) -> int:
        """KV tokens of the largest session that lives; a new plan must have room for it."""
        return max((session.capacity for session in self._scheduler.live), default=0)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Admit a request. See the port."""
        plan = self._plan
        if plan is None or self.refusing:
            raise NotReady(self.refusing or "no plan serves yet", RETRY_AFTER_SECONDS)
        assert request.prompt and request.max_tokens > 0, "the API refuses these by name"
        total = len(request.prompt) + request.max_tokens
        if total > plan.max_context_tokens:
            raise ContextTooLong(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} output tokens make {total}; "
                f"the context has {plan.max_context_tokens}"
            )
        session = Session(self._next_id, list(request.prompt), len(request.prompt), total)
        try:
            self._scheduler.submit(session)
        except QueueFull:
            raise Saturated(
                f"{len(self._scheduler.running)} sessions run and {len(self._scheduler.waiting)} wait; "
                "no more may wait",
                RETRY_AFTER_SECONDS,
            ) from None
        self._next_id += 1
        stream = TokenStream(lambda: self._cancel(session.id))
        self._live[session.id] = LiveRequest(request, session, stream, self._clock())
        self._gauges()
        self._wake.set()
        return stream

    def _cancel(self, session: int) -> None:
        if self._forget(session) is not None:
            self._gauges()
            self._wake.set()

    def _forget(self, session: int) -> LiveRequest | None:
        live = self._live.pop(session, None)
        if live is not None:
            self._scheduler.finish(session)
            self._ended.set()
        return live

    def _gauges(self) -> None:
        running, waiting = self.sessions()
        self._metrics.running.set(running)
        self._metrics.waiting.set(waiting)
        self._metrics.in_flight.set(len(self._scheduler.in_flight))

    # --- changes of plan, called by the coordinator --------------------------------------------

    async def pause(self) -> None:
        """Start no more steps and wait for those in flight: a token boundary."""
        self._paused = True
        if self._scheduler.in_flight:
            self._drained.clear()
            await self._drained.wait()

    def halt(self) -> None:
        """Start no more steps and give up those in flight: the chain is broken."""
        self._paused = True
        self._scheduler.in_flight.clear()
        self._sent.clear()
        self._drained.set()
        link, self._link = self._link, None
        if link is not None:
            self._closing = asyncio.create_task(link.close())

    async def switch(self, plan: Plan, link: FrameLink, embedder: Embedder, head: LoadedHead) -> None:
        """Serve ``plan`` from now on; live sessions are replayed through it."""
        old = self._link
        replayed = sum(session.position for session in self._scheduler.running.values())
        self._metrics.replayed_tokens.inc(replayed)
        self._plan, self._link, self._embedder, self._head = plan, link, embedder, head
        self._sent.clear()
        self._scheduler.reset(
            replace(
                self._settings.scheduler,
                kv_budget_tokens=plan.kv_budget_tokens,
                max_in_flight=self._settings.micro_batches or len(plan.segments),
            )
        )
        self._metrics.epoch.set(plan.epoch)
        self._paused = False
        self.refusing = None
        self._gauges()
        self._wake.set()
        if old is not None:
            await old.close()

    def resume(self) -> None:
        """Go on under the plan that serves, after a change that was given up before its commit."""
        self._paused = False
        self._wake.set()

    def fail_all(self, reason: str) -> None:
        """End every live request with an error."""
        for live in list(self._live.values()):
            self._end(live, PipelineFailed(reason))

    async def drain(self, grace_seconds: float) -> None:
        """Wait until no request lives, at most ``grace_seconds``; what is left then is failed."""
        try:
            async with asyncio.timeout(grace_seconds):
                while self._live:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            self.fail_all("the entry shut down before the request was finished")

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pump steps and take returns until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(), name="pump")
            group.create_task(self._take_returns(), name="returns")
            group.create_task(self._watch(), name="watch")

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self._paused and (link := self._link) is not None:
                batch = self._scheduler.next_batch()
                frame = self._frame(batch) if batch else self._release_frame()
                if frame is None:
                    break
                if batch:
                    self._sent[batch.step] = self._clock()
                    self._metrics.rows.inc(batch.rows)
                    self._note_started(batch)
                try:
                    await link.send(frame)
                except LinkError:
                    break  # the link has reported it as lost
            self._gauges()

    def _note_started(self, batch: MicroBatch) -> None:
        now = self._clock()
        for piece in batch.slices:
            live = self._live.get(piece.session)
            if live is not None and live.started is None:
                live.started = now
                self._metrics.queue_seconds.observe(now - live.submitted)

    def _frame(self, batch: MicroBatch) -> pb.Frame:
        assert self._plan is not None and self._embedder is not None
        frame = pb.Frame(epoch=self._plan.epoch, step=batch.step, hop=0, released=batch.released)
        rows: list[NDArray[Any]] = []
        for piece in batch.slices:
            frame.sessions.add(
                session=piece.session,
                position=piece.position,
                count=piece.count,
                keep=piece.keep,
                capacity=piece.capacity,
            )
            rows.append(self._embedder.embed(piece.tokens, piece.position))
        put_array(frame, np.concatenate(rows) if len(rows) > 1 else rows[0], self._plan.dtype)
        return frame

    def _release_frame(self) -> pb.Frame | None:
        released = self._scheduler.take_released()
        if not released:
            return None
        assert self._plan is not None and self._embedder is not None
        frame = pb.Frame(epoch=self._plan.epoch, step=self._scheduler.next_step(), hop=0, released=released)
        put_array(frame, self._embedder.embed((), 0), self._plan.dtype)
        return frame

    def on_frame(self, epoch: int, frame: pb.Frame) -> None:
        """From the return stream of ``epoch``."""
        self._returned.put_nowait((epoch, frame, self._clock()))

    def on_error(self, error: pb.StreamError) -> None:
        """A typed error came back along the chain."""
        self._metrics.step_errors.labels(pb.ErrorCode.Name(error.code).lower()).inc()
        if error.epoch != self.epoch:
            return
        where = f"hop {error.hop} on {error.node}: {error.field + ': ' if error.field else ''}{error.message}"
        if (
            error.code in (pb.BAD_FRAME, pb.KV_EXHAUSTED, pb.COMPUTE_FAILED)
            and error.step in self._scheduler.in_flight
        ):
            log.warning("step failed", step=error.step, reason=where)
            self._sent.pop(error.step, None)
            for session in self._scheduler.rewind(error.step):
                live = self._live[session]
                live.failures += 1
                if live.failures > MAX_FAILURES:
                    self._end(live, PipelineFailed(where))
            self._after_step()
        elif error.code != pb.DRAINING:
            self.on_broken(where)

    async def _take_returns(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            epoch, frame, received = await self._returned.get()
            if epoch != self.epoch or frame.step not in self._scheduler.in_flight:
                continue  # of a step that was given up, or a frame that only released
            batch = self._scheduler.in_flight[frame.step]
            try:
                self._check(frame, batch)
            except FrameError as error:
                self.on_broken(f"the last hop returned a bad frame: {error}")
                continue
            kept = [piece for piece in batch.slices if piece.keep]
            wanted = [(piece, live) for piece in kept if (live := self._live.get(piece.session)) is not None]
            began = self._clock()
            try:
                sampled = await loop.run_in_executor(self._compute, self._sample, frame, kept, wanted)
            except Exception as error:
                log.error("sampling failed", exc_info=True, step=frame.step)
                self._fail_step(frame.step, f"{type(error).__name__}: {error}")
                continue
            if epoch != self.epoch or frame.step not in self._scheduler.in_flight:
                continue  # the plan changed, or the chain broke, while the head computed
            self._scheduler.complete(frame.step)
            self._observe(frame, received, began)
            for (_piece, live), token in zip(wanted, sampled, strict=True):
                if self._live.get(live.session.id) is not live:
                    continue  # cancelled while the head computed
                if isinstance(token, SamplerError):
                    self._end(live, PipelineFailed(str(token)))
                else:
                    self._token(live, token)
            self._after_step()

    def _check(self, frame: pb.Frame, batch: MicroBatch) -> None:
        assert self._plan is not None
        check_envelope(
            frame,
            Expectation(
                epoch=self._plan.epoch,
                hop=len(self._plan.segments),
                dtype=self._plan.dtype,
                hidden_size=self._hidden_size,
                kv_budget_tokens=self._plan.kv_budget_tokens,
                max_context_tokens=self._plan.max_context_tokens,
            ),
        )
        sent = [(p.session, p.position, p.count, p.keep) for p in batch.slices]
        came = [(p.session, p.position, p.count, p.keep) for p in frame.sessions]
        if sent != came:
            raise FrameError(
                pb.BAD_FRAME, "sessions", f"step {frame.step} came back with others than it was sent with"
            )
        if frame.dims[0] != sum(piece.keep for piece in batch.slices):
            raise FrameError(
                pb.BAD_FRAME, "dims", f"{frame.dims[0]} rows, step {frame.step} keeps fewer or more"
            )

    def _sample(
        self, frame: pb.Frame, kept: Sequence[Slice], wanted: Sequence[tuple[Slice, LiveRequest]]
    ) -> list[Sampled | SamplerError]:
        """On the head thread: logits of the kept rows, then one draw per session; one bad row fails one session."""
        if not wanted:
            return []
        assert self._head is not None
        hidden = array_of(frame)
        rows = {piece.session: row for row, piece in enumerate(kept)}
        if len(wanted) != len(kept):
            hidden = np.ascontiguousarray(hidden[[rows[piece.session] for piece, _ in wanted]])
        began = self._clock()
        logits = self._head.logits(hidden)
        computed = self._clock()
        result = [draw(logits[row], live) for row, (_, live) in enumerate(wanted)]
        self._metrics.step_seconds.labels("head").observe(computed - began)
        self._metrics.step_seconds.labels("sample").observe(self._clock() - computed)
        return result

    def _token(self, live: LiveRequest, sampled: Sampled) -> None:
        now = self._clock()
        if live.last_token is None:
            self.recent_ttft.append(now - live.submitted)
        else:
            self.recent_tpot.append(now - live.last_token)
        live.last_token = now
        self.tokens_total += 1
        finish = live.take(sampled.token)
        live.stream.put(TokenEvent(sampled.token, sampled.logprob, sampled.top, finish))
        if finish is None:
            self._scheduler.append(live.session.id, sampled.token)
        else:
            self._forget(live.session.id)

    def _end(self, live: LiveRequest, error: PipelineFailed) -> None:
        self._forget(live.session.id)
        live.stream.put(error)

    def _fail_step(self, step: int, reason: str) -> None:
        for session in self._scheduler.rewind(step):
            self._end(self._live[session], PipelineFailed(reason))
        self._after_step()

    def _after_step(self) -> None:
        if not self._scheduler.in_flight:
            self._drained.set()
        self._gauges()
        self._wake.set()

    def _observe(self, frame: pb.Frame, received: float, began: float) -> None:
        ring = received - self._sent.pop(frame.step, received)
        inside = 0.0
        for timing in frame.timings:
            serialise = (timing.decode_us + timing.encode_us) / 1e6
            for part, seconds in (
                ("queue", timing.queue_us / 1e6),
                ("serialise", serialise),
                ("compute", timing.compute_us / 1e6),
            ):
                inside += seconds
                self._metrics.hop_seconds.labels(str(timing.hop), part).observe(seconds)
        self._metrics.step_seconds.labels("ring").observe(ring)
        self._metrics.step_seconds.labels("wire").observe(max(0.0, ring - inside))
        self._metrics.step_seconds.labels("return_queue").observe(began - received)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._settings.step_seconds / 4))
            if self._sent and not (self._paused and self._drained.is_set()):
                step, sent = min(self._sent.items(), key=lambda item: item[1])
                if self._clock() - sent > self._settings.step_seconds:
                    self.on_broken(f"step {step} got no answer in {self._settings.step_seconds:g} s")


def draw(logits: NDArray[np.float32], live: LiveRequest) -> Sampled | SamplerError:
    """The next token of one request from ``[vocab]`` logits, or why there is none."""
    try:
        return sample(logits, live.request.sampling, live.counts, live.generated)
    except SamplerError as error:
        return error
