"""The entry's side of the protocol by hand: a test says every frame itself and sees every answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from splitinfer.segment_runtime.channel import EPOCH_KEY, HOP_KEY, SERVER_OPTIONS, open_channel, read_frame
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.proto import runtime_pb2_grpc as rpc
from splitinfer.segment_runtime.store.reader import StoredModel
from splitinfer.segment_runtime.wire import Expectation

ANSWER_SECONDS = 20
METHOD = "/splitinfer.v1.Activations/Stream"

Answer = pb.Frame | pb.StreamError
RawStream = grpc.aio.StreamStreamCall[bytes, pb.Signal]


class Returns(rpc.ActivationsServicer):
    """Takes whatever the last hop pushes."""

    def __init__(self, answers: asyncio.Queue[Answer]) -> None:
        self._answers = answers

    async def Stream(self, _iterator: object, context: object) -> None:  # type: ignore[override]  # noqa: N802
        """Any epoch, any hop."""
        await context.write(pb.Signal(opened=pb.Opened()))  # type: ignore[attr-defined]
        while (frame := await read_frame(context)) is not None:  # type: ignore[arg-type]
            self._answers.put_nowait(frame)


@dataclass
class Peer:
    """A connection to one host that holds a whole chain of one hop, from both of its ends."""

    model: StoredModel
    node: str
    channel: grpc.aio.Channel
    back: str
    answers: asyncio.Queue[Answer]
    epoch: int = 0
    call: RawStream | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    gone: bool = False
    """The test has ended the host: there is nothing to release."""

    @property
    def control(self) -> rpc.HostControlAsyncStub:
        """The control service."""
        return rpc.HostControlStub(self.channel)

    def request(
        self,
        epoch: int,
        ranges: Sequence[tuple[int, int]] | None = None,
        *,
        context: int = 32,
        budget: int = 128,
        **changes: Any,
    ) -> pb.PrepareRequest:
        """A prepare of the given ranges as hops 0, 1, ...; of the whole model by default."""
        ranges = [(0, self.model.index.blocks)] if ranges is None else ranges
        request = pb.PrepareRequest(
            epoch=epoch,
            plan_digest=f"plan-{epoch}",
            model_name=self.model.name,
            model_digest=self.model.digest,
            dtype=pb.FLOAT32,
            ranges=[
                pb.RangeSpec(hop=hop, start=start, stop=stop, next=self.back)
                for hop, (start, stop) in enumerate(ranges)
            ],
            kv_budget_tokens=budget,
            max_context_tokens=context,
            node=self.node,
            hops=len(ranges),
        )
        for name, value in changes.items():
            setattr(request, name, value)
        return request

    async def prepare(self, request: pb.PrepareRequest) -> list[pb.PrepareProgress]:
        """Have the host load; every word that it says."""
        return [update async for update in self.control.Prepare(request, timeout=60)]

    async def next_epoch(self) -> int:
        """One that the host has not seen."""
        state = await self.control.Describe(pb.DescribeRequest(), timeout=20)
        return int(state.fence) + 1

    async def clear(self) -> int:
        """Release every epoch; gives the host's fence."""
        state = await self.state()
        for old in {r.epoch for r in state.ranges}:
            await self.control.Release(pb.EpochRequest(epoch=old), timeout=20)
        return int(state.fence)

    async def serve(self, *, context: int = 32, budget: int = 128) -> Expectation:
        """Prepare, commit and open a stream under the next epoch; what was there before is released."""
        self.epoch = await self.clear() + 1
        await self.prepare(self.request(self.epoch, context=context, budget=budget))
        await self.control.Commit(pb.EpochRequest(epoch=self.epoch), timeout=20)
        await self.open()
        return Expectation(
            epoch=self.epoch,
            hop=0,
            dtype="float32",
            hidden_size=self.model.index.hidden_size,
            kv_budget_tokens=budget,
            max_context_tokens=context,
        )

    async def stream(self, *metadata: tuple[str, str]) -> RawStream:
        """A raw stream with any metadata; bytes in, signals out."""
        method = self.channel.stream_stream(
            METHOD, request_serializer=bytes, response_deserializer=pb.Signal.FromString
        )
        return method(metadata=metadata)  # type: ignore[call-arg]  # without an iterator: read and write

    async def open(self, hop: int = 0) -> None:
        """Open the stream of a hop; its answers go to `answers`."""
        call = await self.stream((EPOCH_KEY, str(self.epoch)), (HOP_KEY, str(hop)))
        first = await call.read()
        assert isinstance(first, pb.Signal), f"{await call.code()}: {await call.details()}"
        assert first.WhichOneof("kind") == "opened"
        self.call = call
        task = asyncio.create_task(self._listen(call))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _listen(self, call: RawStream) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while isinstance(signal := await call.read(), pb.Signal):
                self.answers.put_nowait(signal.error)

    async def send(self, data: bytes | pb.Frame) -> None:
        """Push bytes, or a frame."""
        assert self.call is not None
        await self.call.write(data if isinstance(data, bytes) else data.SerializeToString())

    async def answer(self) -> Answer:
        """The next frame or error that comes back."""
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self.answers.get()

    async def ask(self, data: bytes | pb.Frame) -> Answer:
        """Push, and wait for what comes of it."""
        await self.send(data)
        return await self.answer()

    async def ended(self) -> grpc.StatusCode:
        """Wait until the host ends the stream; its status."""
        assert self.call is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            code: grpc.StatusCode = await self.call.code()
        return code

    async def state(self) -> pb.HostState:
        """What the host says of itself."""
        return await self.control.Describe(pb.DescribeRequest(), timeout=20)

    async def settled(self) -> pb.HostState:
        """Wait until the host holds no KV; its last word when it does not come to that."""
        for _ in range(500):
            state = await self.state()
            if not any(r.kv_bytes or r.sessions for r in state.ranges):
                break
            await asyncio.sleep(0.01)
        return state


@contextlib.asynccontextmanager
async def peer_of(model: StoredModel, node: str, address: str) -> AsyncIterator[Peer]:
    """A peer of one host, with a return service of its own."""
    answers: asyncio.Queue[Answer] = asyncio.Queue()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_ActivationsServicer_to_server(Returns(answers), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(address) as channel:
        peer = Peer(model, node, channel, f"127.0.0.1:{port}", answers)
        try:
            yield peer
        finally:
            if peer.call is not None:
                peer.call.cancel()
            if not peer.gone:
                await peer.clear()
            await asyncio.gather(*peer.tasks)
    await server.stop(grace=0)
