"""A pipeline without processes: the test is the chain, and answers each step when it wants and as it wants."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from splitinfer.optimizer.plan import ModelRef, Plan, cuts_at
from splitinfer.segment_runtime.channel import FrameLink
from splitinfer.segment_runtime.engine.port import Array, Identity, LoadedHead
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams
from splitinfer.segment_runtime.entry.live import TokenStream
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.sessions import Limits
from splitinfer.segment_runtime.entry.settings import Settings
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import put_array

WIDTH, VOCAB, CONTEXT = 2, 16, 32
PATIENCE_SECONDS = 30


def plan(epoch: int, hops: int = 2) -> Plan:
    """One block per hop."""
    return Plan(
        epoch=epoch,
        model=ModelRef(name="m", digest="0" * 64),
        blocks=hops,
        segments=cuts_at(hops, range(1, hops), [f"node-{hop}" for hop in range(hops)]),
        max_context_tokens=CONTEXT,
        kv_budget_tokens=4 * CONTEXT,
    )


class HandLink:
    """Where the pipeline sends its frames."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[pb.Frame] = asyncio.Queue()
        self.closed = False

    async def send(self, frame: pb.Frame) -> None:
        """Taken."""
        self._frames.put_nowait(frame)

    async def close(self) -> None:
        """Once or more."""
        self.closed = True

    async def frame(self) -> pb.Frame:
        """The next frame that the pipeline sends."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._frames.get()

    @property
    def waiting(self) -> int:
        """Frames that the test has not looked at."""
        return self._frames.qsize()


class HandEmbedder:
    """Every token a row of itself."""

    def __init__(self) -> None:
        self.on_call: Callable[[], None] = lambda: None

    def embed(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """``[tokens, WIDTH]``."""
        self.on_call()
        return np.repeat(np.asarray(tokens, np.float32).reshape(-1, 1), WIDTH, axis=1)


class HandHead:
    """The first number of a row is the token that it gives. A test may hold it up with `gate`."""

    identity = Identity("hand", "1", "none", exact=False)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.on_call: Callable[[], None] = lambda: None

    def logits(self, hidden: Array) -> NDArray[np.float32]:
        """One-hot."""
        self.entered.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        self.on_call()
        logits = np.zeros((len(hidden), VOCAB), np.float32)
        logits[np.arange(len(hidden)), np.asarray(hidden)[:, 0].astype(int)] = 1
        return logits


def answer(frame: pb.Frame, token: int, hops: int = 2, timings: Sequence[pb.HopTiming] = ()) -> pb.Frame:
    """What the last hop sends back for ``frame``: every kept row says ``token``."""
    back = pb.Frame(epoch=frame.epoch, step=frame.step, hop=hops, sessions=frame.sessions)
    rows = sum(piece.keep for piece in frame.sessions)
    put_array(back, np.full((rows, WIDTH), token, np.float32), "float32")
    back.timings.extend(timings or [pb.HopTiming(hop=hop) for hop in range(hops)])
    return back


class HandChain:
    """A pipeline, and the test's end of whatever chain it was switched to last."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, settings: Settings | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self.metrics = PipelineMetrics(self.registry)
        settings = settings or Settings(Limits(kv_budget_tokens=1))
        self.pipeline = Pipeline("m", WIDTH, CONTEXT, settings, self.metrics, clock)
        self.head = HandHead()
        self.embedder = HandEmbedder()
        self.link = HandLink()
        self.breaks: list[str] = []
        self.pipeline.on_broken = self.breaks.append

    def switch(self, epoch: int) -> HandLink:
        """Serve ``epoch``; gives its link."""
        self.link = HandLink()
        serving = plan(epoch)
        self.pipeline.switch(
            serving,
            cast("FrameLink", self.link),
            cast("Embedder", self.embedder),
            cast("LoadedHead", self.head),
            [pb.Identity(engine="hand") for _ in serving.segments],
        )
        return self.link

    async def in_head(self) -> None:
        """Wait until the head has a step, which it keeps while its gate is closed."""
        assert await asyncio.to_thread(self.head.entered.wait, PATIENCE_SECONDS)

    def submit(self, tokens: int, prompt: Sequence[int] = (1, 2, 3)) -> TokenStream:
        """A greedy request."""
        return self.pipeline.submit(GenerationRequest(tuple(prompt), tokens, SamplingParams(temperature=0.0)))


@contextlib.asynccontextmanager
async def hand_chain(
    clock: Callable[[], float] = time.perf_counter, settings: Settings | None = None
) -> AsyncIterator[HandChain]:
    """A pipeline that runs; a task of it that failed fails the test."""
    chain = HandChain(clock, settings)
    task = asyncio.create_task(chain.pipeline.run())
    try:
        yield chain
    finally:
        chain.head.gate.set()
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, Exception):
            raise result


async def token_of(stream: TokenStream) -> int:
    """The next token."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await anext(stream)).token
