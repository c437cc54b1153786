"""The requests that live: from their admission to their end, whichever end that is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from splitinfer.segment_runtime.entry.generate import (
    ContextTooLong,
    GenerationError,
    GenerationRequest,
    Saturated,
)
from splitinfer.segment_runtime.entry.live import LiveRequest, TokenStream
from splitinfer.segment_runtime.entry.scheduler import QueueFull, Scheduler
from splitinfer.segment_runtime.entry.sessions import Session

RETRY_AFTER_SECONDS = 2


class Requests:
    """Live requests by session. The scheduler knows a session exactly as long as it is here."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._live: dict[int, LiveRequest] = {}
        self._next_id = 1
        self._ended = asyncio.Event()
        """Set when a request ends."""

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, session: int) -> LiveRequest:
        return self._live[session]

    def __iter__(self) -> Iterator[LiveRequest]:
        """Over a copy, so that requests may end meanwhile."""
        return iter(list(self._live.values()))

    def get(self, session: int) -> LiveRequest | None:
        """The request of a session, unless it is over."""
        return self._live.get(session)

    def submit(
        self, request: GenerationRequest, context_tokens: int, cancel: Callable[[int], None]
    ) -> TokenStream:
        """Admit a request; closing its stream before the end calls ``cancel``.

        Raises:
            ContextTooLong: prompt and output take more than ``context_tokens``.
            Saturated: no more may wait.
        """
        assert request.prompt, "the API refuses it by name"
        assert request.max_tokens > 0, "the API refuses it by name"
        total = len(request.prompt) + request.max_tokens
        if total > context_tokens:
            raise ContextTooLong(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} output tokens make {total}; "
                f"the context has {context_tokens}"
            )
        session = Session(self._next_id, list(request.prompt), len(request.prompt), total)
        try:
            self._scheduler.submit(session)
        except QueueFull:
            running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
            raise Saturated(
                f"{running} sessions run and {waiting} wait; no more may wait", RETRY_AFTER_SECONDS
            ) from None
        self._next_id += 1
        stream = TokenStream(lambda: cancel(session.id))
        self._live[session.id] = LiveRequest(request, session, stream, self._clock())
        return stream

    def forget(self, session: int) -> LiveRequest | None:
        """A request is over; None if it was before."""
        live = self._live.pop(session, None)
        if live is not None:
            self._scheduler.finish(session)
            self._ended.set()
        return live

    def fail(self, live: LiveRequest, error: GenerationError) -> None:
        """End a request with an error."""
        self.forget(live.session.id)
        live.stream.put(error)

    def fail_all(self, error: GenerationError) -> None:
        """End every live request with an error."""
        for live in self:
            self.fail(live, error)

    async def drain(self, grace_seconds: float) -> bool:
        """Wait until no request lives, at most ``grace_seconds``; whether none does."""
        try:
            async with asyncio.timeout(grace_seconds):
                while self._live:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True
