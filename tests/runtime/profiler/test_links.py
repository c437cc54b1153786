"""Link probes over real sockets of one machine; `test_shaped_links` has links that are slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from splitinfer.profiler.links import MOST_BYTES, LinkProbeError, echo_handlers, measure


@pytest.fixture
async def far_end() -> AsyncIterator[str]:
    """An agent's echo."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((echo_handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


class Relay:
    """A TCP relay that holds everything back for a while, in both directions."""

    def __init__(self, target: str, one_way_seconds: float) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._delay = one_way_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> tuple[asyncio.Server, str]:
        """Listen; gives the address."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pipe(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(1 << 16):
            loop.call_later(self._delay, sink.write, data)
        loop.call_later(self._delay, sink.close)


async def test_a_delay_is_seen(far_end: str) -> None:
    """20 ms one way are seen as a round trip of 40 ms within 20 % over what the link has without."""
    bare = await measure(far_end)
    server, address = await Relay(far_end, 0.02).serve()
    async with server:
        delayed = await measure(address)
    added = delayed.round_trip_median_seconds - bare.round_trip_median_seconds
    assert 0.04 * 0.99 <= added <= 0.04 * 1.2
    assert delayed.round_trip_p95_seconds >= delayed.round_trip_median_seconds


async def test_an_end_that_is_not_there_is_an_error() -> None:
    """Unknown, with the address and the reason; no number."""
    with pytest.raises(LinkProbeError, match=r"127\.0\.0\.1:1: "):
        await measure("127.0.0.1:1", timeout_seconds=5)


async def test_an_end_that_does_not_answer_is_an_error() -> None:
    """A socket that accepts and says nothing."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(LinkProbeError, match=r"no answer in 0\.5 s"):
            await measure(address, timeout_seconds=0.5)


async def test_what_is_sent_is_told_also_of_a_probe_that_fails(far_end: str) -> None:
    """Budgets count what went out, not what came of it; a whole probe keeps to what it says it sends at most."""
    told: list[int] = []
    await measure(far_end, sent=told.append)
    assert 64 * 18 < sum(told) <= MOST_BYTES
    broken: list[int] = []
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(LinkProbeError):
            await measure(address, timeout_seconds=0.2, sent=broken.append)
    assert broken == [64]
