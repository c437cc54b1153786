"""The control service of a host: describe, prepare, commit, release, forget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

import grpc
import structlog

from splitinfer.segment_runtime.channel import LinkError
from splitinfer.segment_runtime.compute import ComputeThread
from splitinfer.segment_runtime.engine.port import EngineError
from splitinfer.segment_runtime.host.ranges import HostRanges, identity_message
from splitinfer.segment_runtime.host.requests import PrepareError
from splitinfer.segment_runtime.host.streams import HopStreams
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc
from splitinfer.segment_runtime.store.errors import StoreError

log = structlog.get_logger()

CONNECT_SECONDS = 10.0

DescribeContext = grpc.aio.ServicerContext[pb.DescribeRequest, pb.HostState]
PrepareContext = grpc.aio.ServicerContext[pb.PrepareRequest, pb.PrepareProgress]
ForgetContext = grpc.aio.ServicerContext[pb.ForgetRequest, pb.ForgetReply]
EpochContext = grpc.aio.ServicerContext[pb.EpochRequest, pb.EpochReply]


class ControlService(rpc.HostControlServicer):
    """What the entry drives. Loads run on their own thread, beside the steps of the epoch that serves."""

    def __init__(
        self, ranges: HostRanges, streams: HopStreams, compute: ComputeThread, loader: Executor
    ) -> None:
        self._ranges = ranges
        self._streams = streams
        self._compute = compute
        self._loader = loader

    async def Describe(  # noqa: N802
        self, _request: pb.DescribeRequest, _context: DescribeContext
    ) -> pb.HostState:
        """Engine, memory and ranges."""
        engine = self._ranges.engine
        return pb.HostState(
            node=self._ranges.node,
            engine=engine.name,
            device=engine.device,
            version=engine.version,
            threads=engine.threads,
            memory_limit_bytes=self._ranges.memory_limit_bytes,
            memory_used_bytes=engine.resident_weight_bytes + self._ranges.kv_bytes,
            ranges=self._ranges.states(),
            draining=self._streams.draining,
            fence=self._ranges.fence,
            identity=identity_message(engine.identity),
        )

    async def Prepare(  # noqa: N802
        self, request: pb.PrepareRequest, context: PrepareContext
    ) -> AsyncIterator[pb.PrepareProgress]:
        """Load the ranges of a new epoch, reporting bytes; the last message says ready.

        When the caller goes away meanwhile, the load is given up: nobody would ever release it.
        """
        if self._streams.draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._ranges.node} is shutting down")
        loop = asyncio.get_running_loop()
        progress: asyncio.Queue[pb.PrepareProgress] = asyncio.Queue()

        def report(done: int, total: int) -> None:
            update = pb.PrepareProgress(loaded_bytes=done, total_bytes=total)
            loop.call_soon_threadsafe(progress.put_nowait, update)

        load = loop.run_in_executor(self._loader, self._ranges.prepare, request, report)
        load.add_done_callback(lambda _: progress.put_nowait(pb.PrepareProgress(ready=True)))
        try:
            while not (update := await progress.get()).ready:
                yield update
        finally:
            if not load.done():
                log.warning("prepare given up by its caller", epoch=request.epoch)
                self._ranges.abandon(request.epoch)
                load.cancel()
        try:
            prepared = await load
        except (PrepareError, StoreError, EngineError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except MemoryError as error:
            reason = f"{self._ranges.node}: out of memory: {error}"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        except Exception as error:
            log.exception("prepare failed", epoch=request.epoch)
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        total = sum(hop.loaded.weight_bytes for hop in prepared.hops.values())
        ranges = [f"{r.start}:{r.stop}" for r in request.ranges]
        engines = sorted({hop.loaded.identity.engine for hop in prepared.hops.values()})
        log.info("prepared", epoch=request.epoch, bytes=total, ranges=ranges, engines=engines)
        identities = [identity_message(prepared.hops[r.hop].loaded.identity) for r in request.ranges]
        yield pb.PrepareProgress(loaded_bytes=total, total_bytes=total, ready=True, identities=identities)

    async def Commit(self, request: pb.EpochRequest, context: EpochContext) -> pb.EpochReply:  # noqa: N802
        """Connect the hops of a prepared epoch to their next hops; older epochs lose their sessions."""
        try:
            epoch = await self._compute.run(self._ranges.commit, request.epoch)
            await self._streams.connect(epoch, CONNECT_SECONDS)
        except PrepareError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except LinkError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        log.info("committed", epoch=request.epoch)
        return self._epochs()

    async def Release(self, request: pb.EpochRequest, _context: EpochContext) -> pb.EpochReply:  # noqa: N802
        """Drop the ranges and sessions of one epoch: after a change the old one, after a failed prepare the new one."""
        # First the ranges, so that the ends of streams and links that follow are known to be no loss.
        await self._compute.run(self._ranges.release, request.epoch)
        await self._streams.disconnect(request.epoch)
        log.info("released", epoch=request.epoch)
        return self._epochs()

    async def Forget(self, request: pb.ForgetRequest, _context: ForgetContext) -> pb.ForgetReply:  # noqa: N802
        """Free sessions now: not on the compute thread, which may be in the middle of the very step that is to end."""
        await asyncio.to_thread(self._ranges.forget, request.epoch, request.sessions)
        return pb.ForgetReply()

    def _epochs(self) -> pb.EpochReply:
        return pb.EpochReply(epochs=[epoch.epoch for epoch in self._ranges.epochs])
