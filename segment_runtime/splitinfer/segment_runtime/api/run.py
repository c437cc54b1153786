"""Running the choices of one request: admit all or none, follow each, close each whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import structlog

from splitinfer.segment_runtime.api.choice import ChoiceText, Increment
from splitinfer.segment_runtime.api.jobs import Job
from splitinfer.segment_runtime.api.logs import describe
from splitinfer.segment_runtime.api.metrics import ApiMetrics
from splitinfer.segment_runtime.entry.generate import Generator, PipelineFailed, TokenEvent
from splitinfer.segment_runtime.text.codec import TextCodec
from splitinfer.segment_runtime.text.stops import StopMatcher

log = structlog.get_logger(__name__)

Sink = Callable[[int, Increment], None]


class Run:
    """The choices of one request, from admission to the last close. An async context manager."""

    def __init__(
        self,
        job: Job,
        generator: Generator,
        codec: TextCodec,
        metrics: ApiMetrics,
        clock: Callable[[], float],
        started: float,
    ) -> None:
        """Prepare; nothing is admitted yet. ``started`` is when the request came, by ``clock``."""
        self._job = job
        self._generator = generator
        self._metrics = metrics
        self._clock = clock
        self._started = started
        self._streams: list[AsyncIterator[TokenEvent]] = []
        self._choices = [
            ChoiceText(codec.detokeniser(continuation=job.continuation), StopMatcher(job.stops))
            for _ in job.requests
        ]

    async def __aenter__(self) -> Self:
        """Admit every choice, or close those that were and raise what the pipeline said (GenerationError)."""
        try:
            for request in self._job.requests:
                self._streams.append(self._generator.submit(request))
        except BaseException:
            await self._close()
            raise
        self._metrics.prompt_tokens.inc(self._job.prompt_tokens)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open; this frees the sessions of a client that went away."""
        await self._close()

    async def drive(self, sink: Sink) -> None:
        """Follow all choices to their ends at the pipeline's pace, giving ``sink`` each increment.

        Raises:
            GenerationError: of the first choice that broke; the others are cancelled.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(self._streams)):
                    group.create_task(self._follow(index, sink))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, of all choices."""
        return sum(choice.generated for choice in self._choices)

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return self._job.prompt_tokens

    async def _follow(self, index: int, sink: Sink) -> None:
        last: float | None = None
        async for event in self._streams[index]:
            now = self._clock()
            if last is None:
                self._metrics.ttft.observe(now - self._started)
            else:
                self._metrics.tpot.observe(now - last)
            last = now
            self._metrics.generated_tokens.inc()
            increment = self._choices[index].push(event)
            sink(index, increment)
            if increment.finish is not None:
                # A stop string ends the choice here and not at the pipeline: the session must not run on
                # while the other choices do.
                await _aclose(self._streams[index])
                return
        raise PipelineFailed("the pipeline ended a session without a finish reason")

    async def _close(self) -> None:
        closed = await asyncio.gather(*map(_aclose, self._streams), return_exceptions=True)
        for error in closed:
            if isinstance(error, Exception):  # the request has its answer; a session may have leaked
                log.error("a session did not close", error=describe(error))


async def _aclose(stream: AsyncIterator[TokenEvent]) -> None:
    """Close a session; closing twice is nothing."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
