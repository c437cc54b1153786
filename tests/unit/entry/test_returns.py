"""The return link: whose stream the entry takes, which frames of it, and what its end means. Over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import grpc
import pytest

from splitinfer.segment_runtime.channel import SERVER_OPTIONS, FrameLink, LinkError, open_channel
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.returns import ReturnService
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc

SECONDS = 20
T = TypeVar("T")


class FakePipeline:
    """Notes what it is handed."""

    def __init__(self) -> None:
        self.epoch = 2
        self.frames: asyncio.Queue[tuple[int, pb.Frame]] = asyncio.Queue()
        self.breaks: asyncio.Queue[str] = asyncio.Queue()

    def on_frame(self, epoch: int, frame: pb.Frame) -> None:
        """A frame that was let through."""
        self.frames.put_nowait((epoch, frame))

    def on_broken(self, reason: str) -> None:
        """The stream of the epoch that serves has ended."""
        self.breaks.put_nowait(reason)


@dataclass
class LastHop:
    """The last hop's end of a return stream."""

    address: str
    epoch: int = 2
    hop: int = 3
    errors: asyncio.Queue[pb.StreamError] = field(default_factory=asyncio.Queue)

    async def __aenter__(self) -> FrameLink:
        self.link = FrameLink(
            self.address, self.epoch, self.hop, on_error=self.errors.put_nowait, on_lost=lambda _: None
        )
        await self.link.open(SECONDS)
        return self.link

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()


@contextlib.asynccontextmanager
async def entry() -> AsyncIterator[tuple[str, ReturnService, FakePipeline]]:
    """A return service that listens."""
    pipeline = FakePipeline()
    service = ReturnService(cast("Pipeline", pipeline))
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_ActivationsServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", service, pipeline
    finally:
        await server.stop(grace=0)


async def soon(queue: asyncio.Queue[T]) -> T:
    """The next of a queue."""
    async with asyncio.timeout(SECONDS):
        return await queue.get()


@pytest.mark.parametrize(("epoch", "hop"), [(1, 3), (3, 3), (2, 2), (2, 4)])
async def test_a_stream_of_another_epoch_or_hop_is_refused_and_the_right_one_still_comes(
    epoch: int, hop: int
) -> None:
    """The refusal says what came; it neither takes the place of who is expected nor breaks what serves."""
    async with entry() as (address, service, pipeline):
        service.expect(2, 3)
        with pytest.raises(LinkError, match=f"epoch {epoch} hop {hop} is not what the entry expects"):
            async with LastHop(address, epoch, hop):
                pass
        assert not any(map(service.is_open, (1, 2, 3)))
        assert pipeline.breaks.empty()
        async with LastHop(address) as link:
            assert service.is_open(2)
            await link.send(pb.Frame(epoch=2, step=1))
            assert (await soon(pipeline.frames))[1].step == 1


async def test_a_stream_without_epoch_and_hop_is_refused() -> None:
    """Whoever found the port: what it sends reaches nobody."""
    async with entry() as (address, service, pipeline):
        service.expect(2, 3)
        async with open_channel(address) as channel:
            call = rpc.ActivationsStub(channel).Stream()  # type: ignore[call-arg]  # without an iterator: read and write
            assert await call.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "epoch ? hop ? is not what the entry expects" in await call.details()
        assert pipeline.breaks.empty()
        assert not service.is_open(2)


async def test_nobody_is_taken_unless_expected_and_only_one_is() -> None:
    """Before the commit, and a second time beside the first: refused, and the first serves on."""
    async with entry() as (address, service, pipeline):
        with pytest.raises(LinkError, match="is not what the entry expects"):
            async with LastHop(address):
                pass
        service.expect(2, 3)
        async with LastHop(address) as link:
            with pytest.raises(LinkError, match="is not what the entry expects"):
                async with LastHop(address):
                    pass
            assert service.is_open(2)
            assert pipeline.breaks.empty()
            await link.send(pb.Frame(epoch=2, step=4))
            assert (await soon(pipeline.frames))[1].step == 4


@pytest.mark.parametrize("says", [0, 1, 3])
async def test_a_frame_of_another_epoch_is_sent_back_and_the_stream_goes_on(says: int) -> None:
    """It does not reach the pipeline; the sender is told which field of which step is wrong."""
    async with entry() as (address, service, pipeline):
        service.expect(2, 3)
        hop = LastHop(address)
        async with hop as link:
            await link.send(pb.Frame(epoch=says, step=7))
            error = await soon(hop.errors)
            assert (error.code, error.field, error.epoch, error.step) == (pb.WRONG_EPOCH, "epoch", says, 7)
            assert error.message == f"{says}, this stream serves epoch 2"
            await link.send(pb.Frame(epoch=2, step=8))
            epoch, frame = await soon(pipeline.frames)
            assert (epoch, frame.step) == (2, 8)
            assert pipeline.breaks.empty()


async def test_the_end_of_an_old_epoch_s_stream_breaks_nothing_and_that_of_the_new_one_does() -> None:
    """Frames are handed on under the epoch of their stream, whichever of the two serves."""
    async with entry() as (address, service, pipeline):
        service.expect(1, 3)
        old = LastHop(address, 1)
        async with old as old_link:
            service.expect(2, 3)
            async with LastHop(address) as link:
                await old_link.send(pb.Frame(epoch=1, step=1))
                assert (await soon(pipeline.frames))[0] == 1
                assert service.is_open(1)
                await old_link.close()
                async with asyncio.timeout(SECONDS):
                    while service.is_open(1):  # noqa: ASYNC110  # state of the code under test
                        await asyncio.sleep(0.01)
                assert pipeline.breaks.empty()
                assert service.is_open(2)
                await link.send(pb.Frame(epoch=2, step=1))
                assert (await soon(pipeline.frames))[0] == 2
        assert await soon(pipeline.breaks) == "the last hop closed the return stream"
        assert not service.is_open(2)
