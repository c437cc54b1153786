"""The entry's side of a host's control service.

Errors
------
HostError                 a host that cannot be reached or refuses; carries the node and whether it answered
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import grpc

from splitinfer.segment_runtime.channel import being_cancelled, describe, open_channel
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc


class HostError(Exception):
    """A host that cannot be reached, or refuses.

    Attributes:
        node: its name.
        answered: it is alive and said no; otherwise it did not answer.
    """

    def __init__(self, node: str, message: str, *, answered: bool) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node
        self.answered = answered


_UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class HostClient:
    """Control of one host."""

    def __init__(self, node: str, address: str) -> None:
        self.node = node
        self.address = address
        self._channel = open_channel(address)
        self._stub = rpc.HostControlStub(self._channel)

    def _error(self, error: grpc.aio.AioRpcError) -> HostError:
        answered = error.code() not in _UNANSWERED
        # A refusal is the host's own sentence; what gRPC calls it helps nobody.
        message = str(error.details()) if answered else f"{self.address}: {describe(error)}"
        return HostError(self.node, message, answered=answered)

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Whatever goes wrong with a call is a HostError, also that `close` came in between."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        except grpc.aio.UsageError as error:
            raise HostError(self.node, f"{self.address}: {error}", answered=False) from error
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise HostError(self.node, f"{self.address}: the connection was closed", answered=False) from None

    async def describe(self, timeout_seconds: float) -> pb.HostState:
        """What the host is and holds. Raises HostError."""
        async with self._asking():
            return await self._stub.Describe(pb.DescribeRequest(), timeout=timeout_seconds)

    async def prepare(
        self, request: pb.PrepareRequest, progress: Callable[[int, int], None]
    ) -> Sequence[pb.Identity]:
        """Have the host load what ``request`` names; ``progress(loaded, total)`` in bytes. Raises HostError.

        Gives what computes each range. Without a deadline: a load takes as long as its disk needs. A host that dies meanwhile breaks the
        connection, one that hangs fails its keepalive.
        """
        ready, identities = False, list[pb.Identity]()
        async with self._asking():
            async for update in self._stub.Prepare(request):
                progress(update.loaded_bytes, update.total_bytes)
                ready, identities = update.ready, list(update.identities)
        if not ready:
            raise HostError(self.node, "prepare ended before it was ready", answered=False)
        return identities

    async def commit(self, epoch: int, timeout_seconds: float) -> tuple[int, ...]:
        """Switch the host to ``epoch``; gives the epochs that it still holds. Raises HostError."""
        async with self._asking():
            reply = await self._stub.Commit(pb.EpochRequest(epoch=epoch), timeout=timeout_seconds)
        return tuple(reply.epochs)

    async def release(self, epoch: int, timeout_seconds: float) -> None:
        """Have the host drop ``epoch``. Raises HostError."""
        async with self._asking():
            await self._stub.Release(pb.EpochRequest(epoch=epoch), timeout=timeout_seconds)

    async def forget(self, epoch: int, sessions: Sequence[int], timeout_seconds: float) -> None:
        """Have the host free sessions and end a step that has only them. Raises HostError."""
        async with self._asking():
            request = pb.ForgetRequest(epoch=epoch, sessions=sessions)
            await self._stub.Forget(request, timeout=timeout_seconds)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)
