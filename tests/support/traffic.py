"""``python -m tests.support.traffic ADDRESS``: a gRPC stream as the data plane's, frames one way, and what it says of the link."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import Any, NoReturn

import grpc

from splitinfer.profiler.live_links import live_links
from splitinfer.profiler.sock_diag import TcpSocket, established

SERVICE, METHOD = "tests.Traffic", "Stream"
Context = grpc.aio.ServicerContext[bytes, bytes]


async def _sink(_iterator: object, context: Context) -> None:
    while isinstance(await context.read(), bytes):
        pass


async def listen(address: str) -> None:
    """Take frames and say nothing, as the next hop does."""
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(_sink)  # bytes in, bytes out
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    host, _, _ = address.rpartition(":")
    port = server.add_insecure_port(address)
    await server.start()
    print(json.dumps({"address": f"{host}:{port}"}), flush=True)
    await server.wait_for_termination()


async def send(address: str, nbytes: int, every: float, seconds: float) -> dict[str, Any]:
    """Frames of ``nbytes`` for so long; what ten looks in a second tell of the link, and the last one as it was."""
    clock = asyncio.get_running_loop().time
    looks: list[list[TcpSocket]] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()  # type: ignore[call-arg]  # bytes both ways, read and write
        began = look = clock()
        while clock() - began < seconds:
            await call.write(bytes(nbytes))
            if clock() >= look:
                look += 0.1
                looks.append(established())
            await asyncio.sleep(every)
        call.cancel()
    live = live_links(looks, {address: "peer"})["peer"]
    (last,) = (found for found in looks[-1] if found.remote == address)
    return {"live": asdict(live), "last": asdict(last)}


def main() -> NoReturn:
    """Listen, or send."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--listen", action="store_true")
    parser.add_argument("--bytes", type=int, default=2400)
    parser.add_argument("--every", type=float, default=0.03)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    if args.listen:
        asyncio.run(listen(args.address))
    else:
        print(json.dumps(asyncio.run(send(args.address, args.bytes, args.every, args.seconds))))
    sys.stdout.flush()
    os._exit(0)  # now and then gRPC's threads hold up the end of a process whose last call was cancelled


if __name__ == "__main__":
    main()
