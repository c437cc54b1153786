"""The activation stream of one hop: read, check, compute, push on; errors go back the way frames came."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor

import grpc
import numpy as np
import structlog

from splitinfer.segment_runtime.channel import (
    EPOCH_KEY,
    HOP_KEY,
    FrameLink,
    LinkError,
    StreamContext,
    read_frame,
)
from splitinfer.segment_runtime.host.metrics import HostMetrics
from splitinfer.segment_runtime.host.ranges import Hop, HostEpoch, HostRanges
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc
from splitinfer.segment_runtime.wire import FrameError, array_of, check_frame, kept_rows, put_array

log = structlog.get_logger()

QUEUED_FRAMES = 32
"""Frames read ahead of the engine; beyond it gRPC's flow control holds the sender."""

Key = tuple[int, int]


def microseconds(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return int(seconds * 1e6)


class HopStreams(rpc.ActivationsServicer):
    """Serves the incoming streams of all hops of this host and owns their outgoing links."""

    def __init__(
        self,
        ranges: HostRanges,
        compute: Executor,
        metrics: HostMetrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ranges = ranges
        self._compute = compute
        self._metrics = metrics
        self._clock = clock
        self._links: dict[Key, FrameLink] = {}
        self._signals: dict[Key, asyncio.Queue[pb.Signal]] = {}
        self._finished: set[Key] = set()
        self.draining = False

    @property
    def open_streams(self) -> int:
        """Incoming streams that are served now."""
        return len(self._signals)

    async def connect(self, epoch: HostEpoch, timeout_seconds: float) -> None:
        """Open the link to the next hop for every hop of an epoch. Raises LinkError."""

        async def one(number: int, hop: Hop) -> None:
            key = (epoch.epoch, number)
            if key in self._links:
                return
            link = FrameLink(
                hop.next_address,
                epoch.epoch,
                number + 1,
                on_error=lambda error: self._signal(key, error),
                on_lost=lambda reason: self._lost(key, reason),
            )
            await link.open(timeout_seconds)
            self._links[key] = link

        results = await asyncio.gather(*(one(n, h) for n, h in epoch.hops.items()), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    async def disconnect(self, epoch: int) -> None:
        """Close the links of a released epoch."""
        for key in [key for key in self._links if key[0] == epoch]:
            await self._links.pop(key).close()

    def announce_draining(self) -> None:
        """Tell every upstream that this host is about to leave."""
        self.draining = True
        for epoch, hop in list(self._signals):
            self._signal(
                (epoch, hop), self._error(epoch, 0, hop, pb.DRAINING, "", "the host is shutting down")
            )

    def _error(
        self, epoch: int, step: int, hop: int, code: pb.ErrorCode.ValueType, field: str, message: str
    ) -> pb.StreamError:
        return pb.StreamError(
            epoch=epoch, step=step, hop=hop, node=self._ranges.node, code=code, field=field, message=message
        )

    def _signal(self, key: Key, error: pb.StreamError) -> None:
        queue = self._signals.get(key)
        if queue is not None:
            queue.put_nowait(pb.Signal(error=error))

    def _lost(self, key: Key, reason: str) -> None:
        log.warning("downstream lost", epoch=key[0], hop=key[1], reason=reason)
        self._signal(key, self._error(key[0], 0, key[1], pb.DOWNSTREAM_LOST, "", reason))

    # The stubs know only the iterator form of a handler; read and write are grpc.aio's other form.
    async def Stream(self, _iterator: object, context: StreamContext) -> None:  # type: ignore[override]
        """One upstream. A stream is opened once per epoch and hop; when it ends its sessions are freed."""
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        try:
            key = (int(metadata[EPOCH_KEY]), int(metadata[HOP_KEY]))
        except (KeyError, ValueError):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"metadata {EPOCH_KEY} and {HOP_KEY} must be numbers"
            )
        hop = self._ranges.hop(*key)
        if hop is None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"epoch {key[0]} hop {key[1]} is not prepared on {self._ranges.node}",
            )
        if key in self._signals or key in self._finished:
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS,
                f"epoch {key[0]} hop {key[1]} had its stream; use a newer epoch",
            )
        signals: asyncio.Queue[pb.Signal] = asyncio.Queue()
        frames: asyncio.Queue[tuple[pb.Frame, float] | None] = asyncio.Queue(QUEUED_FRAMES)
        self._signals[key] = signals
        signals.put_nowait(pb.Signal(opened=pb.Opened(epoch=key[0], hop=key[1])))
        if self.draining:
            self._signal(key, self._error(key[0], 0, key[1], pb.DRAINING, "", "the host is shutting down"))
        writer = asyncio.create_task(self._write(signals, context))
        worker = asyncio.create_task(self._work(key, hop, frames))
        try:
            while (frame := await read_frame(context)) is not None:
                await frames.put((frame, self._clock()))
            await frames.put(None)
            await worker
        finally:
            for task in (worker, writer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            del self._signals[key]
            self._finished.add(key)
            self._finished = {k for k in self._finished if self._ranges.hop(*k) is not None}
            if link := self._links.pop(key, None):
                await link.close()
            # Nobody can continue this epoch's sessions any more: a newer epoch opens its own.
            await asyncio.get_running_loop().run_in_executor(self._compute, hop.close)

    async def _write(self, signals: asyncio.Queue[pb.Signal], context: StreamContext) -> None:
        while True:
            await context.write(await signals.get())

    async def _work(self, key: Key, hop: Hop, frames: asyncio.Queue[tuple[pb.Frame, float] | None]) -> None:
        loop = asyncio.get_running_loop()
        while (item := await frames.get()) is not None:
            frame, received = item
            result = await loop.run_in_executor(self._compute, self._step, hop, frame, received)
            if isinstance(result, pb.StreamError):
                self._metrics.errors.labels(pb.ErrorCode.Name(result.code).lower()).inc()
                log.warning(
                    "frame refused",
                    epoch=key[0],
                    hop=key[1],
                    step=frame.step,
                    field=result.field,
                    reason=result.message,
                )
                self._signal(key, result)
                continue
            link = self._links.get(key)
            if link is None:
                self._lost(key, "no link to the next hop: the epoch was not committed, or the link broke")
                continue
            self._metrics.sent_bytes.inc(len(result.data))
            try:
                await link.send(result)
            except LinkError as error:
                # The link said so itself when it broke, but perhaps before there was an upstream to hear it.
                self._lost(key, str(error))

    def _step(self, hop: Hop, frame: pb.Frame, received: float) -> pb.Frame | pb.StreamError:
        """On the compute thread: check, compute, and the frame for the next hop."""
        began = self._clock()
        expected = hop.expected
        try:
            slices = check_frame(frame, expected, hop.session, hop.reserved_without(frame.released))
        except FrameError as error:
            return self._error(frame.epoch, frame.step, expected.hop, error.code, error.field, error.message)
        hop.release(frame.released)
        out = pb.Frame(epoch=frame.epoch, step=frame.step, hop=expected.hop + 1)
        out.released.extend(frame.released)
        out.timings.extend(frame.timings)
        hidden = array_of(frame)
        decoded = self._clock()
        result = hidden
        if slices:
            try:
                result = hop.run(slices, hidden)
            except Exception as error:
                log.error(
                    "step failed", exc_info=True, epoch=expected.epoch, hop=expected.hop, step=frame.step
                )
                # Some blocks may have appended to the KV and some not: these sessions begin anew.
                hop.release(piece.rows.session for piece in slices)
                return self._error(
                    frame.epoch,
                    frame.step,
                    expected.hop,
                    pb.COMPUTE_FAILED,
                    "",
                    f"{type(error).__name__}: {error}",
                )
        computed = self._clock()
        if hop.last:
            rows = kept_rows(slices)
            if rows is not None:
                result = np.ascontiguousarray(result[rows])
        out.sessions.extend(frame.sessions)
        put_array(out, result, expected.dtype)
        encoded = self._clock()
        out.timings.append(
            pb.HopTiming(
                hop=expected.hop,
                queue_us=microseconds(began - received),
                decode_us=microseconds(decoded - began),
                compute_us=microseconds(computed - decoded),
                encode_us=microseconds(encoded - computed),
            )
        )
        self._metrics.received_bytes.inc(len(frame.data))
        self._metrics.queue_seconds.observe(began - received)
        if slices:
            self._metrics.step_seconds.observe(computed - decoded)
            self._metrics.rows.inc(frame.dims[0])
        return out
