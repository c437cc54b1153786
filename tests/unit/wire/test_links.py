"""Links and clients whose other side, or whose own side, ends at a bad moment. In one process, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from splitinfer.segment_runtime.channel import SERVER_OPTIONS, FrameLink, LinkError, StreamContext
from splitinfer.segment_runtime.entry.hosts import HostClient, HostError
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc

Handler = Callable[[StreamContext], Awaitable[None]]
BIG = pb.Frame(epoch=1, step=1, data=bytes(8_000_000))
"""More than gRPC sends to a peer that does not read."""


class Receiver(rpc.ActivationsServicer, rpc.HostControlServicer):
    """Does with a stream what a test wants; its control calls never end."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.never = asyncio.Event()

    async def Stream(self, _iterator: object, context: StreamContext) -> None:  # type: ignore[override]  # noqa: N802
        """As the test says."""
        await self._handler(context)

    async def Describe(self, request: object, context: object) -> pb.HostState:  # noqa: N802
        """Never."""
        await self.never.wait()
        return pb.HostState()


@contextlib.asynccontextmanager
async def receiving(handler: Handler) -> AsyncIterator[str]:
    """The address of a receiver."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    receiver = Receiver(handler)  # type: ignore[abstract]  # the calls that no test makes
    rpc.add_ActivationsServicer_to_server(receiver, server)
    rpc.add_HostControlServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    receiver.never.set()
    await server.stop(grace=0)


async def open_and_wait(context: StreamContext) -> None:
    """Open, and never read a frame."""
    await context.write(pb.Signal(opened=pb.Opened()))
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


def link_to(address: str, lost: list[str]) -> FrameLink:
    """A link that notes its loss."""
    return FrameLink(address, 1, 0, on_error=lambda _: None, on_lost=lost.append)


async def test_a_send_that_waits_for_room_fails_when_the_link_is_closed() -> None:
    """It ends as LinkError. As CancelledError it would end the sender's task, and the entry would stand still."""
    async with receiving(open_and_wait) as address:
        lost: list[str] = []
        link = link_to(address, lost)
        await link.open(5)

        async def pump() -> str:
            while True:
                try:
                    await link.send(BIG)
                except LinkError as error:
                    return str(error)

        sender = asyncio.create_task(pump())
        done, _ = await asyncio.wait({sender}, timeout=0.5)
        assert not done, "the receiver reads nothing, so a send must wait"
        await link.close()
        assert "was closed" in await asyncio.wait_for(sender, 5) or "is closed" in sender.result()
        assert lost == [], "a link that is closed is not lost"


async def test_a_sender_that_is_cancelled_stays_cancelled_and_the_link_is_lost() -> None:
    """The call is given up by gRPC with its write; whoever owns the link must hear of it."""
    async with receiving(open_and_wait) as address:
        lost: list[str] = []
        link = link_to(address, lost)
        await link.open(5)
        sender = asyncio.create_task(_forever(link))
        await asyncio.wait({sender}, timeout=0.5)
        sender.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sender
        async with asyncio.timeout(5):
            while not lost:  # noqa: ASYNC110  # a callback's list
                await asyncio.sleep(0.01)
        assert link.lost == lost[0]
        await link.close()


async def _forever(link: FrameLink) -> None:
    while True:
        await link.send(BIG)


async def refuse(context: StreamContext) -> None:
    """With a reason."""
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not prepared")


async def silent(_context: StreamContext) -> None:
    """Neither open nor end."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def wrong_word(context: StreamContext) -> None:
    """An error where the stream should be opened."""
    await context.write(pb.Signal(error=pb.StreamError(message="?")))
    await silent(context)


async def at_once(_context: StreamContext) -> None:
    """End without a word."""


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (refuse, "hop 0 at .*: FAILED_PRECONDITION: not prepared"),
        (silent, "hop 0 at .*: no answer in 0.5 s"),
        (wrong_word, "hop 0 at .*: the receiver does not open the stream"),
        (at_once, "hop 0 at .*: OK"),
    ],
)
async def test_a_stream_that_is_not_opened_is_an_error_with_the_reason(
    handler: Handler, message: str
) -> None:
    """In the time that was given."""
    async with receiving(handler) as address:
        with pytest.raises(LinkError, match=message):
            await asyncio.wait_for(link_to(address, []).open(0.5), 5)


async def test_the_end_of_a_stream_is_reported_once_with_its_reason() -> None:
    """Not again by the sends that fail after it."""

    async def leave(context: StreamContext) -> None:
        await context.write(pb.Signal(opened=pb.Opened()))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "leaving")

    async with receiving(leave) as address:
        lost: list[str] = []
        link = link_to(address, lost)
        await link.open(5)
        async with asyncio.timeout(5):
            while not lost:  # noqa: ASYNC110  # a callback's list
                await asyncio.sleep(0.01)
        with pytest.raises(LinkError):
            await link.send(BIG)
        assert lost == [f"hop 0 at {address}: UNAVAILABLE: leaving"]
        await link.close()


async def test_a_call_to_a_host_whose_client_is_closed_fails_as_a_host_error() -> None:
    """A host that restarts gets a new client while calls on the old one wait: they must not look cancelled."""
    async with receiving(silent) as address:
        client = HostClient("n", address)
        call = asyncio.create_task(client.describe(30))
        await asyncio.wait({call}, timeout=0.3)
        await client.close()
        with pytest.raises(HostError, match=r"^n: ") as caught:
            await asyncio.wait_for(call, 5)
        assert not caught.value.answered
        with pytest.raises(HostError, match=r"^n: "):
            await client.describe(1)


async def test_a_call_that_its_caller_cancels_stays_cancelled() -> None:
    """Shutdown must not turn into an error of a host."""
    async with receiving(silent) as address:
        client = HostClient("n", address)
        call = asyncio.create_task(client.describe(30))
        await asyncio.wait({call}, timeout=0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await client.close()
