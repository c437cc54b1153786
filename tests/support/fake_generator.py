"""A pipeline that says what a test tells it to: the generation port, which is ours, without a model behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from math import log

from splitinfer.segment_runtime.entry.generate import (
    FinishReason,
    GenerationError,
    GenerationRequest,
    TokenEvent,
)

Script = Callable[[GenerationRequest], Sequence[int]]


class FakeStream:
    """One session. Counts as open from its admission to its end or its close, whichever comes first."""

    def __init__(self, owner: FakeGenerator, request: GenerationRequest) -> None:
        self._owner = owner
        self._events = self._run(request)
        self.given = 0
        self.ended = asyncio.Event()
        self.waiting = asyncio.Event()
        """Set when a token is asked for that the gate holds back."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        try:
            return await anext(self._events)
        except BaseException:
            self.ended.set()
            raise

    async def aclose(self) -> None:
        """As an async generator: may come twice, and before the first token."""
        self.ended.set()
        await self._events.aclose()

    async def _run(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        for index, token in enumerate(self._owner.script(request)[: request.max_tokens]):
            if self._owner.pause_after is not None and index >= self._owner.pause_after:
                self.waiting.set()
                await self._owner.gate.wait()
            if self._owner.break_after == index:
                raise self._owner.failure
            finish: FinishReason | None = None
            if token in request.stop_token_ids:
                finish = "stop"
            elif index + 1 == request.max_tokens:
                finish = "length"
            self.given += 1
            yield self._event(request, token, index, finish)
            if finish is not None:
                return
            await asyncio.sleep(0)

    @staticmethod
    def _event(request: GenerationRequest, token: int, index: int, finish: FinishReason | None) -> TokenEvent:
        wanted = request.sampling.top_logprobs
        if wanted is None:
            return TokenEvent(token, finish=finish)
        top = tuple((token + k, log(0.5 / (k + 1))) for k in range(wanted))
        return TokenEvent(token, log(0.5) if index != 2 else float("-inf"), top, finish)


class FakeGenerator:
    """Gives every request the tokens of ``script``, cut at its max_tokens and its stop tokens.

    Attributes:
        requests: what was asked, in order.
        streams: one per admitted request.
        refuse: raised by the next admissions.
        admits: how many admissions succeed before ``refuse`` is raised.
        pause_after: tokens that each session gives before it waits for ``gate``.
        break_after: the index of the token in whose place ``failure`` is raised.
    """

    model_name = "tiny"
    system_fingerprint = "fp_test"

    def __init__(self, script: Script, *, max_context_tokens: int = 200) -> None:
        self.script = script
        self.max_context_tokens = max_context_tokens
        self.is_ready = True
        self.requests: list[GenerationRequest] = []
        self.streams: list[FakeStream] = []
        self.refuse: GenerationError | None = None
        self.admits = 0
        self.pause_after: int | None = None
        self.gate = asyncio.Event()
        self.break_after: int | None = None
        self._admissions = asyncio.Semaphore(0)
        self.failure: Exception = RuntimeError("no failure set")

    def ready(self) -> bool:
        """As the test set it."""
        return self.is_ready

    def submit(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Admit, or raise ``refuse``."""
        if self.refuse is not None and len(self.streams) >= self.admits:
            raise self.refuse
        self.requests.append(request)
        stream = FakeStream(self, request)
        self.streams.append(stream)
        self._admissions.release()
        return stream

    async def admitted(self, count: int = 1) -> None:
        """Wait for the next ``count`` admissions."""
        async with asyncio.timeout(10):
            for _ in range(count):
                await self._admissions.acquire()

    @property
    def open_sessions(self) -> int:
        """Admitted and neither ended nor closed."""
        return sum(not stream.ended.is_set() for stream in self.streams)
