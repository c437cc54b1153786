"""What a link can do: round trips and bandwidth, over the kind of connection that the data plane uses (a gRPC stream).

The far end answers every message with an empty one. A round trip is a message of the size of a decode row; bandwidth is
how long larger ones take over that. The arithmetic is in `link_times`.

Errors
------
LinkProbeError            the far end cannot be reached, or did not answer in time
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc

from splitinfer.profiler.link_times import LinkTimes, link_times

SERVICE, METHOD = "splitinfer.profiler.v1.Link", "Echo"
SMALL_BYTES = 4096
LARGE_BYTES = 256 << 10
ROUND_TRIPS = 15
PAUSE_SECONDS = 0.02
"""Before each round trip: between two frames of a stream lies a step. Where one follows the other at once, nobody has to
wake up, and on a fast link that is half of what a frame takes."""
WARM = 3
"""Round trips that are not counted: the first ones open the connection and wake both ends."""
TRANSFERS = 4
PROBE_BYTES = (WARM + ROUND_TRIPS) * SMALL_BYTES + TRANSFERS * LARGE_BYTES
"""That one probe sends at most."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class LinkProbeError(Exception):
    """The far end cannot be reached, or did not answer in time."""


async def measure(
    address: str, timeout_seconds: float = 5.0, clock: Callable[[], float] = time.perf_counter
) -> LinkTimes:
    """Probe the link to an agent: about 1.1 MB.

    Raises:
        LinkProbeError: unreachable, or too slow for ``timeout_seconds``.
    """
    try:
        async with asyncio.timeout(timeout_seconds), grpc.aio.insecure_channel(address) as channel:
            # The stub wants serialisers and a request iterator; without them it takes bytes and is written to.
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()  # type: ignore[call-arg]

            async def send(nbytes: int, pause: float = 0.0) -> float:
                await asyncio.sleep(pause)
                began = clock()
                await call.write(bytes(nbytes))
                if not isinstance(await call.read(), bytes):
                    raise LinkProbeError(f"{address}: ended the stream")
                return clock() - began

            small = [await send(SMALL_BYTES, PAUSE_SECONDS) for _ in range(WARM + ROUND_TRIPS)][WARM:]
            large = [await send(LARGE_BYTES) for _ in range(TRANSFERS)]
            call.cancel()
    except TimeoutError:
        raise LinkProbeError(f"{address}: no answer in {timeout_seconds:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise LinkProbeError(f"{address}: {error.code().name}: {error.details()}") from None
    return link_times(small, large, LARGE_BYTES - SMALL_BYTES)


async def _echo(_iterator: object, context: Context) -> None:
    while isinstance(await context.read(), bytes):
        await context.write(b"")


def echo_handlers() -> grpc.GenericRpcHandler[bytes, bytes]:
    """The far end, to be added to a ``grpc.aio`` server."""
    handler = grpc.stream_stream_rpc_method_handler(_echo)  # bytes in, bytes out
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
