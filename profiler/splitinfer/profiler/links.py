"""What a link can do: round trips and bandwidth, over the kind of connection that the data plane uses (a gRPC stream).

The far end answers every message with an empty one as soon as it has it. A round trip is that of a message so small that its
own bytes take no time on a slow link either: what bytes take, the bandwidth says. The arithmetic is in `link_times`.

What is found is what one gRPC stream achieves, which is what the data plane gets; of a link that is faster than that, this
is no measure. The other direction carries answers of some 100 bytes only: a slow way back does not slow the way there.

Errors
------
LinkProbeError            the far end cannot be reached, or did not answer in time
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median

import grpc

from splitinfer.profiler.link_times import MOST_BYTES as TRAINS_BYTES
from splitinfer.profiler.link_times import LinkTimes, Train, link_times, next_train

SERVICE, METHOD = "splitinfer.profiler.v1.Link", "Echo"
SMALL_BYTES = 64
ROUND_TRIPS = 15
LEAST_ROUND_TRIPS = 3
ROUND_TRIP_SECONDS = 1.0
"""Where round trips take longer than this together, fewer of them are made."""
PAUSE_SECONDS = 0.02
"""Before each round trip: between two frames of a stream lies a step. Where one follows the other at once, nobody has to
wake up, and on a fast link that is half of what a frame takes."""
WARM = 3
"""Round trips that are not counted: the first ones open the connection and wake both ends."""
MOST_BYTES = (WARM + ROUND_TRIPS) * SMALL_BYTES + TRAINS_BYTES
"""What a probe sends at most, besides the headers of gRPC, TCP and IP."""
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
"""As in the data plane: a connection of its own, and never by a proxy that stands in the environment."""

Context = grpc.aio.ServicerContext[bytes, bytes]
Call = grpc.aio.StreamStreamCall[bytes, bytes]


class LinkProbeError(Exception):
    """The far end cannot be reached, or did not answer in time."""


class _Probe:
    """One stream to a far end, under measurement."""

    def __init__(self, call: Call, clock: Callable[[], float], sent: Callable[[int], object]) -> None:
        self._call, self._clock, self._sent = call, clock, sent

    async def _send(self, nbytes: int, times: int = 1) -> None:
        message = bytes(nbytes)
        for _ in range(times):
            self._sent(nbytes)
            try:
                await self._call.write(message)
            except asyncio.InvalidStateError:  # it ended while nobody was writing or reading
                raise LinkProbeError(
                    f"{(await self._call.code()).name}: {await self._call.details()}"
                ) from None

    async def _answers(self, count: int, began: float) -> tuple[float, ...]:
        answers = []
        for _ in range(count):
            if not isinstance(await self._call.read(), bytes):
                raise LinkProbeError("ended the stream")
            answers.append(self._clock() - began)
        return tuple(answers)

    async def _round_trip(self) -> float:
        await asyncio.sleep(PAUSE_SECONDS)
        began = self._clock()
        await self._send(SMALL_BYTES)
        return (await self._answers(1, began))[0]

    async def round_trips(self) -> list[float]:
        """Seconds of each."""
        began = self._clock()
        for _ in range(WARM):
            await self._round_trip()
            if self._clock() - began > ROUND_TRIP_SECONDS / 2:
                break  # on a link this long, waking up is no part that matters
        found: list[float] = []
        while len(found) < ROUND_TRIPS and (
            len(found) < LEAST_ROUND_TRIPS or sum(found) < ROUND_TRIP_SECONDS
        ):
            found.append(await self._round_trip())
        return found

    async def train(self, messages: int, nbytes: int) -> Train:
        """Its messages are written while the answers to those before are read."""
        began = self._clock()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send(nbytes, messages))
            answers = both.create_task(self._answers(messages, began))
        return Train(nbytes, answers.result())

    async def measure(self, until: float) -> LinkTimes:
        """All of it; ``until`` is when it must be over, by the clock."""
        round_trips = await self.round_trips()
        typical, trains = median(round_trips), list[Train]()
        while (asked := next_train(trains, typical, until - self._clock())) is not None:
            trains.append(await self.train(*asked))
        return link_times(round_trips, trains)


async def measure(
    address: str,
    timeout_seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
    sent: Callable[[int], object] = lambda _: None,
) -> LinkTimes:
    """Probe the link to an agent: at most `MOST_BYTES`, about a second on a slow link.

    Args:
        address: host:port.
        timeout_seconds: of the whole probe.
        clock: monotonic seconds.
        sent: is told the bytes of each message, also of a probe that fails later.

    Raises:
        LinkProbeError: unreachable, or too slow for ``timeout_seconds``.
    """
    until = clock() + timeout_seconds
    try:
        async with asyncio.timeout(timeout_seconds), grpc.aio.insecure_channel(address, OPTIONS) as channel:
            # The stub wants serialisers and a request iterator; without them it takes bytes and is written to.
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()  # type: ignore[call-arg]
            found = await _Probe(call, clock, sent).measure(until)
            call.cancel()
    except TimeoutError:
        raise LinkProbeError(f"{address}: no answer in {timeout_seconds:g} s") from None
    except LinkProbeError as error:
        raise LinkProbeError(f"{address}: {error}") from None
    except grpc.aio.AioRpcError as error:
        raise LinkProbeError(f"{address}: {error.code().name}: {error.details()}") from None
    return found


async def _echo(_iterator: object, context: Context) -> None:
    while isinstance(await context.read(), bytes):
        await context.write(b"")


def echo_handlers() -> grpc.GenericRpcHandler[bytes, bytes]:
    """The far end, to be added to a ``grpc.aio`` server."""
    handler = grpc.stream_stream_rpc_method_handler(_echo)  # bytes in, bytes out
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
