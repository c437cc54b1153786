"""What a push costs without any code of ours: a bare gRPC stream between two processes of this machine.

``python -m benchmarks.wire`` is the other process: it sends every message back, and lives as long as its stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from benchmarks.processes import Worker
from benchmarks.report import Row, Samples
from splitinfer.segment_runtime.compute import ComputeThread

SERVICE, METHOD = "benchmarks.Echo", "Stream"
MESSAGES = 60
WARM = 10
PAUSE_SECONDS = 0.02
"""About as long as the rest of a ring takes."""

Context = grpc.aio.ServicerContext[bytes, bytes]


async def _echo(_iterator: object, context: Context) -> None:
    while isinstance(message := await context.read(), bytes):
        await context.write(message)


async def _serve() -> None:
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(_echo)  # bytes in, bytes out
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


async def _one_way_milliseconds(address: str, size: int, pause_seconds: float) -> float:
    """Half a round trip of ``size`` bytes, mean of some, ``pause_seconds`` after the one before."""
    async with grpc.aio.insecure_channel(address) as channel:
        # The stub wants serialisers and a request iterator; without them it takes bytes, and is read from and written to.
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()  # type: ignore[call-arg]
        taken = 0.0
        for index in range(WARM + MESSAGES):
            await asyncio.sleep(pause_seconds)
            began = time.perf_counter()
            await call.write(bytes(size))
            await call.read()
            if index >= WARM:
                taken += time.perf_counter() - began
        call.cancel()
    return 1e3 * taken / MESSAGES / 2


async def _handover_milliseconds(submit: Callable[[], Awaitable[object]]) -> float:
    """From the loop to a thread and back, mean of some, each after a pause in which both slept."""
    taken = 0.0
    for index in range(WARM + MESSAGES):
        await asyncio.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        await submit()
        if index >= WARM:
            taken += time.perf_counter() - began
    return 1e3 * taken / MESSAGES


async def _by_executor() -> float:
    with ThreadPoolExecutor(1) as pool:
        return await _handover_milliseconds(lambda: asyncio.get_running_loop().run_in_executor(pool, int))


async def _by_compute_thread() -> float:
    thread = ComputeThread("measured")
    try:
        return await _handover_milliseconds(lambda: thread.run(int))
    finally:
        thread.close()


def handover_rows(repeats: int) -> list[Row]:
    """A job for the thread that computes, which does nothing: the standard library's way, and ours."""
    theirs, ours = [], []
    for _ in range(repeats):
        theirs.append(asyncio.run(_by_executor()))
        ours.append(asyncio.run(_by_compute_thread()))
    less = Samples.of([a / b for a, b in zip(ours, theirs, strict=True)])
    name = "a job to another thread and back, {} ms after the one before, by {}"
    pause = f"{1e3 * PAUSE_SECONDS:.0f}"
    return [
        Row(name.format(pause, "ThreadPoolExecutor"), Samples.of(theirs).show("ms", 2)),
        Row(name.format(pause, "ComputeThread"), Samples.of(ours).show("ms", 2), less),
    ]


def rows(size: int, repeats: int) -> list[Row]:
    """One push of a decode row: in a row, and after a pause as long as the rest of a ring takes."""
    with tempfile.TemporaryDirectory() as folder:
        other = Worker("benchmarks.wire", log=Path(folder) / "echo.log")
        try:
            measured = {
                name: Samples.of(
                    [
                        asyncio.run(_one_way_milliseconds(other.said["address"], size, pause))
                        for _ in range(repeats)
                    ]
                )
                for name, pause in (
                    ("one after the other", 0.0),
                    (f"{1e3 * PAUSE_SECONDS:.0f} ms after the one before", PAUSE_SECONDS),
                )
            }
        finally:
            other.stop()
    return [
        Row(f"a bare gRPC message of {size} bytes, {name}", samples.show("ms", 2))
        for name, samples in measured.items()
    ]


if __name__ == "__main__":
    asyncio.run(_serve())
