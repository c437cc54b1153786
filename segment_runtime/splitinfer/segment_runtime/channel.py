"""gRPC channels and the outgoing activation stream of one hop, for hosts and the entry alike.

Errors
------
LinkError                 the next hop cannot be reached or refused the stream
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc

MAX_MESSAGE_BYTES = 512 * 1024 * 1024
"""A frame of the largest prefill chunk of the largest models, with room; above it gRPC refuses."""

KEEPALIVE_MS = 5_000
"""A peer that does not answer is given up after at most twice this."""

EPOCH_KEY, HOP_KEY = "si-epoch", "si-hop"

ChannelOptions = list[tuple[str, int]]

CHANNEL_OPTIONS: ChannelOptions = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer that is stopped or cut off keeps its socket open; pings notice it. How long a ping waits for its answer
    # is the ping timeout, a minute by default; the keepalive timeout alone changes nothing (gRPC 1.85).
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A host that restarts at the same address must not wait out a backoff learned from its predecessor.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Activations never leave the site by an HTTP proxy that happens to stand in the environment.
    ("grpc.enable_http_proxy", 0),
]

SERVER_OPTIONS: ChannelOptions = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Both ends are ours: pings that bunch up on a busy node are no attack, and the default policy answers the
    # third such ping by ending the connection, and with it the pipeline.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]


class LinkError(Exception):
    """The next hop cannot be reached, or refused the stream."""


Call = grpc.aio.StreamStreamCall[pb.Frame, pb.Signal]
StreamContext = grpc.aio.ServicerContext[pb.Frame, pb.Signal]


async def read_frame(context: StreamContext) -> pb.Frame | None:
    """The next frame of an incoming stream, or None when the sender has ended it."""
    message: object = await context.read()  # the stubs do not know grpc.aio.EOF
    return message if isinstance(message, pb.Frame) else None


def being_cancelled() -> bool:
    """Whether a CancelledError is meant for the running task, and not only the end of a gRPC call in it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def describe(error: grpc.aio.AioRpcError) -> str:
    """A gRPC error in one line."""
    return f"{error.code().name}: {error.details()}"


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to ``host:port``; nothing is sent yet."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


class FrameLink:
    """One activation stream to the next hop.

    ``on_error`` gets every typed error that comes back along the stream; ``on_lost`` is called once, with a
    reason, when the stream ends without `close`.
    """

    def __init__(
        self,
        address: str,
        epoch: int,
        hop: int,
        on_error: Callable[[pb.StreamError], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.address = address
        self.epoch = epoch
        self.hop = hop
        self._on_error = on_error
        self._on_lost = on_lost
        self._channel = open_channel(address)
        self._call: Call | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False
        self._lost: str | None = None

    @property
    def lost(self) -> str | None:
        """Why the stream ended without `close`, or None."""
        return self._lost

    async def open(self, timeout_seconds: float) -> None:
        """Connect and wait until the receiver says that it serves this epoch and hop.

        Raises:
            LinkError: unreachable, refused, or no answer in time; the connection is closed again.
        """
        key = ((EPOCH_KEY, str(self.epoch)), (HOP_KEY, str(self.hop)))
        # The stub wants a request iterator; without one the call is read from and written to.
        call = rpc.ActivationsStub(self._channel).Stream(metadata=key)  # type: ignore[call-arg]
        try:
            async with asyncio.timeout(timeout_seconds):
                first = await call.read()
                if not isinstance(first, pb.Signal):
                    raise LinkError(f"{self}: {await _end_of(call)}")
        except TimeoutError:
            await self.close()
            raise LinkError(f"{self}: no answer in {timeout_seconds:g} s") from None
        except grpc.aio.AioRpcError as error:
            await self.close()
            raise LinkError(f"{self}: {describe(error)}") from error
        except BaseException:
            await self.close()
            raise
        if first.WhichOneof("kind") != "opened":
            await self.close()
            raise LinkError(f"{self}: the receiver does not open the stream with its word for it")
        self._call = call
        self._reader = asyncio.create_task(self._read(call), name=f"signals-{self.epoch}-{self.hop}")

    async def _read(self, call: Call) -> None:
        reason = "the receiver ended the stream"
        try:
            while isinstance(signal := await call.read(), pb.Signal):
                if signal.WhichOneof("kind") == "error":
                    self._on_error(signal.error)
            reason = await _end_of(call)
        except grpc.aio.AioRpcError as error:
            reason = describe(error)
        except asyncio.CancelledError:
            # Of this task by `close`; or of the call, by a write that was cancelled half-way.
            if being_cancelled():
                raise
            reason = "the stream was cancelled"
        self._report_lost(reason)

    def _report_lost(self, reason: str) -> None:
        if not self._closed and self._lost is None:
            self._lost = f"{self}: {reason}"
            self._on_lost(self._lost)

    async def send(self, frame: pb.Frame) -> None:
        """Push one frame. Raises LinkError when the stream is gone, or goes while this waits."""
        if self._call is None or self._closed or self._lost is not None:
            raise LinkError(f"{self}: the stream is closed")
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            reason = describe(error) if isinstance(error, grpc.aio.AioRpcError) else str(error)
            self._report_lost(reason)
            raise LinkError(f"{self}: {reason}") from error
        except asyncio.CancelledError:
            # gRPC lets a write that waits for room end like this when `close` cancels the call. To let it
            # through would end the sender's task without a word.
            if being_cancelled():
                raise
            raise LinkError(f"{self}: the stream was closed") from None

    async def close(self) -> None:
        """End the stream and the connection. Repeating it is harmless."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            await asyncio.wait({self._reader})
        await self._channel.close(None)

    def __str__(self) -> str:
        return f"hop {self.hop} at {self.address}"


async def _end_of(call: Call) -> str:
    code = await call.code()
    return f"{code.name}: {await call.details()}"
