"""The proxy that stands for a slow link: late, in order, and not slow besides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest

from benchmarks.delay import DelayedLink, OneWay

DELAY = 0.05


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def echo_behind(delay: float) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to an echo server, by way of a delayed link."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, DelayedLink(f"127.0.0.1:{port}", delay) as link:
        host, _, port = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        yield reader, writer
        writer.close()


async def test_an_answer_takes_both_ways() -> None:
    """A byte and its echo are under way for twice the delay at least: each direction is late by all of it."""
    async with echo_behind(DELAY) as (reader, writer):
        clock = asyncio.get_running_loop().time
        began = clock()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert clock() - began >= 2 * DELAY


async def test_bytes_keep_their_order_and_the_end_comes_last() -> None:
    """More than a socket holds comes back as it was sent, followed by the end of the stream."""
    sent = b"".join(i.to_bytes(4, "big") for i in range(1 << 20))
    async with echo_behind(0.001) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent


class Ended(asyncio.StreamReader):
    """Messages that are all there already; counts how many were taken."""

    def __init__(self, messages: list[bytes]) -> None:
        super().__init__()
        self.left = [*messages, b""]

    async def read(self, n: int = -1) -> bytes:
        """The next message."""
        return self.left.pop(0)


async def test_what_is_on_its_way_does_not_hold_up_what_follows() -> None:
    """Later messages are taken before the first has arrived: the link is long and not narrow."""
    source, sink = Ended([b"a", b"b", b"c"]), Mock(spec=asyncio.StreamWriter)
    left: list[int] = []
    sink.write.side_effect = lambda _: left.append(len(source.left))
    await OneWay(source, sink, DELAY).run()
    assert [call.args[0] for call in sink.write.call_args_list] == [b"a", b"b", b"c"]
    assert left[0] == 0


async def test_a_target_that_is_not_there_ends_the_connection() -> None:
    """Whoever connects sees the end, as without a proxy, and not a connection that says nothing."""
    async with DelayedLink("127.0.0.1:1", 0.0) as link:
        host, _, port = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


@pytest.mark.parametrize("side", ["ours", "theirs"])
async def test_a_closed_side_closes_the_other(side: str) -> None:
    """No process under measurement waits for a peer that has gone."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if side == "ours":
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, DelayedLink(target, 0.001) as link:
        host, _, port = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        if side == "ours":
            writer.close()
        else:
            assert await asyncio.wait_for(reader.read(), 10) == b""
        await asyncio.wait_for(gone.wait(), 10)
        writer.close()
