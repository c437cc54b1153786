"""The activation stream of one hop: read, hand to the engine, push on; errors go back the way frames came."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from splitinfer.segment_runtime.channel import (
    EPOCH_KEY,
    HOP_KEY,
    FrameLink,
    LinkError,
    StreamContext,
    read_frame,
)
from splitinfer.segment_runtime.compute import ComputeThread
from splitinfer.segment_runtime.host.hop import Hop, Outcome
from splitinfer.segment_runtime.host.metrics import HostMetrics
from splitinfer.segment_runtime.host.ranges import HostEpoch, HostRanges
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc

log = structlog.get_logger()

QUEUED_FRAMES = 32
"""Frames read ahead of the engine; beyond it gRPC's flow control holds the sender."""

QUEUED_SIGNALS = 4096
"""Signals kept for an upstream that does not read them; what comes after is dropped, for nobody listens."""

FLUSH_SECONDS = 2.0

Key = tuple[int, int]
"""Epoch and hop."""


@dataclass(slots=True)
class Incoming:
    """One upstream: what is said back to it, and the word that it shall end."""

    signals: asyncio.Queue[pb.Signal | None] = field(default_factory=asyncio.Queue)
    frames: asyncio.Queue[tuple[pb.Frame, float] | None] = field(
        default_factory=lambda: asyncio.Queue(QUEUED_FRAMES)
    )
    released: asyncio.Event = field(default_factory=asyncio.Event)


class HopStreams(rpc.ActivationsServicer):
    """Serves the incoming streams of all hops of this host and owns their outgoing links."""

    def __init__(
        self,
        ranges: HostRanges,
        compute: ComputeThread,
        metrics: HostMetrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ranges = ranges
        self._compute = compute
        self._metrics = metrics
        self._clock = clock
        self._links: dict[Key, FrameLink] = {}
        self._streams: dict[Key, Incoming] = {}
        self._early: dict[Key, pb.StreamError] = {}
        self._connecting = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def open_streams(self) -> int:
        """Incoming streams that are served now."""
        return len(self._streams)

    async def until_idle(self) -> None:
        """Wait until no incoming stream is open."""
        await self._idle.wait()

    async def close(self) -> None:
        """End every stream in order, because the process ends: what is cut off leaves tracebacks at both ends."""
        for incoming in self._streams.values():
            incoming.released.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await self.until_idle()

    # --- what the control service asks -------------------------------------------------------------

    async def connect(self, epoch: HostEpoch, timeout_seconds: float) -> None:
        """Open the link to the next hop for every hop of an epoch. Repeating it is harmless. Raises LinkError."""

        async def one(number: int, hop: Hop) -> None:
            key = (epoch.epoch, number)
            if (known := self._links.get(key)) is not None:
                if known.lost is not None:
                    raise LinkError(known.lost)
                return
            link = FrameLink(
                hop.next_address,
                epoch.epoch,
                number + 1,
                on_error=lambda error: self._signal(key, error),
                on_lost=lambda reason: self._lost(key, reason),
            )
            await link.open(timeout_seconds)
            if self._ranges.hop(*key) is not hop:
                await link.close()
                raise LinkError(f"epoch {key[0]} was released while its links were opened")
            self._links[key] = link

        async with self._connecting:  # a second commit of the epoch must find the links of the first
            hops = epoch.hops.items()
            results = await asyncio.gather(*(one(n, h) for n, h in hops), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    async def disconnect(self, epoch: int) -> None:
        """End the streams and close the links of an epoch that is released."""
        for key, incoming in self._streams.items():
            if key[0] == epoch:
                incoming.released.set()
        self._early = {key: error for key, error in self._early.items() if key[0] != epoch}
        for key in [key for key in self._links if key[0] == epoch]:
            await self._links.pop(key).close()

    def announce_draining(self) -> None:
        """Tell every upstream that this host is about to leave."""
        self.draining = True
        for key in self._streams:
            self._signal_draining(key)

    # --- signals to the upstream ----------------------------------------------------------------------

    def _signal(self, key: Key, error: pb.StreamError) -> None:
        incoming = self._streams.get(key)
        if incoming is None and self._ranges.hop(*key) is not None:
            self._early[key] = (
                error  # the upstream is still to come: it must learn that this chain is no good
            )
        elif incoming is not None and incoming.signals.qsize() < QUEUED_SIGNALS:
            incoming.signals.put_nowait(pb.Signal(error=error))

    def _signal_code(
        self, key: Key, code: pb.ErrorCode.ValueType, message: str, step: int = 0, field: str = ""
    ) -> None:
        node = self._ranges.node
        error = pb.StreamError(
            epoch=key[0], step=step, hop=key[1], node=node, code=code, field=field, message=message
        )
        self._signal(key, error)

    def _signal_draining(self, key: Key) -> None:
        self._signal_code(key, pb.DRAINING, "the host is shutting down")

    def _lost(self, key: Key, reason: str) -> None:
        hop = self._ranges.hop(*key)
        if hop is None or hop.fenced is not None:
            return  # another epoch serves; its end is no loss
        log.warning("downstream lost", epoch=key[0], hop=key[1], reason=reason)
        self._signal_code(key, pb.DOWNSTREAM_LOST, reason)

    # --- one incoming stream ----------------------------------------------------------------------------

    # The stubs know only the iterator form of a handler; read and write are grpc.aio's other form, and the
    # names are the protocol's.
    async def Stream(self, _iterator: object, context: StreamContext) -> None:  # type: ignore[override]  # noqa: N802
        """One upstream. A stream is opened once per epoch and hop; when it ends its sessions are freed."""
        key, hop = await self._opening(context)
        hop.taken = True
        incoming = self._streams[key] = Incoming()
        self._idle.clear()
        incoming.signals.put_nowait(pb.Signal(opened=pb.Opened(epoch=key[0], hop=key[1])))
        if self.draining:
            self._signal_draining(key)
        if (early := self._early.pop(key, None)) is not None:
            self._signal(key, early)
        read = asyncio.create_task(self._read(incoming, context))
        work = asyncio.create_task(self._work(key, hop, incoming))
        write = asyncio.create_task(self._write(incoming, context))
        released = asyncio.create_task(incoming.released.wait())
        tasks: set[asyncio.Task[Any]] = {read, work, write, released}
        try:
            await asyncio.wait(tasks - {read}, return_when=asyncio.FIRST_COMPLETED)
            # What is left to say is said before the status: gRPC loses a status that meets a write under way.
            incoming.signals.put_nowait(None)
            await asyncio.wait({write}, timeout=FLUSH_SECONDS)
            name = f"epoch {key[0]} hop {key[1]}"
            if not work.done():
                reason = "was let go" if released.done() else "cannot be answered any more"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} {reason}")
            work.result()
            await asyncio.wait({read})  # which has told the worker to end, and is about to itself
            if (error := read.exception()) is not None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name}: not a frame: {error}")
        finally:
            self._end(key, hop, tasks)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _opening(self, context: StreamContext) -> tuple[Key, Hop]:
        """The key and the hop that a stream asks for, or its end with a status that says why."""
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        try:
            key = (int(metadata[EPOCH_KEY]), int(metadata[HOP_KEY]))
        except (KeyError, ValueError):
            wanted = f"metadata {EPOCH_KEY} and {HOP_KEY} must be numbers"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wanted)
        hop = self._ranges.hop(*key)
        name = f"epoch {key[0]} hop {key[1]}"
        if hop is None:
            reason = f"{name} is not prepared on {self._ranges.node}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        if hop.fenced is not None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is fenced off: {hop.fenced}")
        if hop.taken:
            reason = f"{name} had its stream; use a newer epoch"
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, reason)
        return key, hop

    def _end(self, key: Key, hop: Hop, tasks: set[asyncio.Task[Any]]) -> None:
        """Give up everything of a stream. Without an await, so that no cancellation can leave half of it."""
        for task in tasks:
            task.cancel()
        del self._streams[key]
        if not self._streams:
            self._idle.set()
        # Nobody can continue this epoch's sessions any more: a newer epoch opens its own.
        with contextlib.suppress(RuntimeError):  # the thread is closed: the process ends, and KV with it
            self._compute.post(hop.close)
        if (link := self._links.pop(key, None)) is not None:
            self._later(link.close())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _read(self, incoming: Incoming, context: StreamContext) -> None:
        try:
            while (frame := await read_frame(context)) is not None:
                await incoming.frames.put((frame, self._clock()))
        finally:
            # However reading ended, the worker is to come to an end after what was read.
            while incoming.frames.full():
                incoming.frames.get_nowait()
            incoming.frames.put_nowait(None)

    async def _write(self, incoming: Incoming, context: StreamContext) -> None:
        while (signal := await incoming.signals.get()) is not None:
            await context.write(signal)

    async def _work(self, key: Key, hop: Hop, incoming: Incoming) -> None:
        while (item := await incoming.frames.get()) is not None:
            frame, received = item
            outcome = await self._compute.run(hop.take, frame, received, self._clock)
            if (error := outcome.error) is not None:
                reason = {"step": frame.step, "field": error.field, "reason": error.message}
                log.warning("frame refused", epoch=key[0], hop=key[1], **reason)
                self._signal_code(key, error.code, error.message, frame.step, error.field)
            if outcome.frame is not None:
                await self._push(key, outcome.frame)
            self._note(frame, outcome)  # last: the next hop waits for the frame, nobody for its figures

    def _note(self, frame: pb.Frame, outcome: Outcome) -> None:
        self._metrics.received_bytes.inc(len(frame.data))
        if outcome.error is not None:
            self._metrics.errors.labels(pb.ErrorCode.Name(outcome.error.code).lower()).inc()
        if outcome.times is not None:
            self._metrics.queue_seconds.observe(outcome.times.queue)
            if outcome.work is not None:
                self._metrics.step(outcome.work, outcome.times.compute)

    async def _push(self, key: Key, frame: pb.Frame) -> None:
        link = self._links.get(key)
        if link is None:
            self._lost(key, "no link to the next hop: the epoch was not committed, or the link broke")
            return
        try:
            await link.send(frame)
            self._metrics.sent_bytes.inc(len(frame.data))
        except LinkError as error:
            # The link said so itself when it broke, but perhaps before there was an upstream to hear it.
            self._lost(key, str(error))
