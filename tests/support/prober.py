"""``python -m tests.support.prober ADDRESS``: probe a link from where this runs, and say one line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from typing import NoReturn

import grpc

from splitinfer.profiler.links import METHOD, SERVICE, LinkProbeError, measure

MESSAGE_BYTES = 256 << 10


async def stream(address: str, megabytes: int) -> dict[str, float]:
    """Bytes per second of a stream of large messages that is as fast as it can be."""
    count = megabytes * 1_000_000 // MESSAGE_BYTES
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()  # type: ignore[call-arg]  # bytes both ways, read and write

        async def write() -> None:
            for _ in range(count):
                await call.write(bytes(MESSAGE_BYTES))

        await call.write(b"")
        await call.read()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as both:
            both.create_task(write())
            for _ in range(count):
                await call.read()
        return {"bandwidth_bytes_per_second": count * MESSAGE_BYTES / (time.perf_counter() - began)}


def main() -> NoReturn:
    """The readings, or ``{"error": WHY}``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--stream", type=int, metavar="MB", help="no probe: this much, at full speed")
    args = parser.parse_args()
    try:
        if args.stream:
            found = asyncio.run(stream(args.address, args.stream))
        else:
            found = asdict(asyncio.run(measure(args.address, timeout_seconds=args.timeout)))
        print(json.dumps(found))
    except LinkProbeError as error:
        print(json.dumps({"error": str(error)}))
    sys.stdout.flush()
    os._exit(0)  # now and then gRPC's threads hold up the end of a process whose last call was cancelled


if __name__ == "__main__":
    main()
