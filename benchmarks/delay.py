"""A TCP proxy that delivers every byte a fixed time after it came: a link of that one-way delay.

Order is kept, and what is on its way does not hold up what follows, so throughput is that of the machine.
``python -m benchmarks.delay --milliseconds M --link FROM_PORT=HOST:PORT ...`` (port 0 takes a free one)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from types import TracebackType

CHUNK_BYTES = 1 << 18
MOST_ON_ITS_WAY = 1 << 27
"""Bytes of one direction in memory. A link of 20 ms has room for 6 GB/s; only a receiver that stands still fills it."""


class OneWay:
    """One direction of one connection."""

    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
        self._source, self._sink, self._delay = source, sink, delay
        self._on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._bytes = 0
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Until the source has ended, and its end has arrived too."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take())
            tasks.create_task(self._deliver())

    async def _take(self) -> None:
        clock = asyncio.get_running_loop().time
        data = b"-"
        while data:  # the end is sent on too, as late as the bytes
            data = await self._source.read(CHUNK_BYTES)
            self._on_its_way.put_nowait((clock() + self._delay, data))
            self._bytes += len(data)
            while self._bytes > MOST_ON_ITS_WAY:
                self._room.clear()
                await self._room.wait()

    async def _deliver(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await self._on_its_way.get()
            if (left := due - clock()) > 0:
                await asyncio.sleep(left)
            if not data:
                self._sink.write_eof()
                return
            self._sink.write(data)
            await self._sink.drain()
            self._bytes -= len(data)
            self._room.set()


class DelayedLink:
    """An address that leads to another one, ``delay`` seconds away in each direction."""

    def __init__(self, target: str, delay: float, port: int = 0) -> None:
        """Listens once it is entered.

        Args:
            target: ``host:port`` that connections are handed on to.
            delay: seconds, one way.
            port: of 127.0.0.1 to listen on; 0 takes a free one.
        """
        self._target, self._delay, self._port = target, delay, port
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> DelayedLink:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def address(self) -> str:
        """``host:port`` to connect to instead of the target."""
        return f"127.0.0.1:{self._port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        with contextlib.closing(writer):
            try:
                theirs, to_them = await asyncio.open_connection(host, int(port))
                with contextlib.closing(to_them):
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(OneWay(reader, to_them, self._delay).run())
                        tasks.create_task(OneWay(theirs, writer, self._delay).run())
            except* OSError:
                pass  # a peer that goes away ends every measurement; whoever needs the link sees it closed


async def serve(links: Sequence[DelayedLink]) -> None:
    """Say the addresses as a line of JSON, and run until stdin ends."""
    async with contextlib.AsyncExitStack() as stack:
        for link in links:
            await stack.enter_async_context(link)
        print(json.dumps({"links": [link.address for link in links]}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main() -> int:
    """One process for all links of a chain, as little as they do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--milliseconds", type=float, required=True)
    parser.add_argument("--link", action="append", default=[], help="PORT=HOST:PORT; port 0 takes a free one")
    args = parser.parse_args()
    asked = [text.partition("=") for text in args.link]
    links = [DelayedLink(target, args.milliseconds / 1e3, int(port)) for port, _, target in asked]
    asyncio.run(serve(links))
    return 0


if __name__ == "__main__":
    sys.exit(main())
