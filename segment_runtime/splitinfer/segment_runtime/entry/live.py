"""A request while it runs: its session, its sampling state, and the stream its tokens go to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

from splitinfer.segment_runtime.entry.generate import (
    FinishReason,
    GenerationError,
    GenerationRequest,
    TokenEvent,
)
from splitinfer.segment_runtime.entry.sessions import Session


class TokenStream(AsyncIterator[TokenEvent]):
    """The tokens of one request. Closing it before the end cancels the request."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        # Bounded by max_tokens of the request, so that a slow reader holds up nobody else.
        self._events: asyncio.Queue[TokenEvent | GenerationError | None] = asyncio.Queue()
        self._on_close = on_close
        self._over = False

    def put(self, event: TokenEvent | GenerationError) -> None:
        """From the pipeline: a token, or the error that ends the stream."""
        self._events.put_nowait(event)

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._over:
            raise StopAsyncIteration
        event = await self._events.get()
        if event is None:  # closed while this waited
            raise StopAsyncIteration
        if isinstance(event, GenerationError):
            self._over = True
            raise event
        if event.finish is not None:
            self._over = True
        return event

    async def aclose(self) -> None:
        """Cancel the request unless it is over; its KV is freed at once."""
        self._over = True
        self._events.put_nowait(None)
        self._on_close()


class LiveRequest:
    """Everything the pipeline keeps about one request."""

    def __init__(
        self, request: GenerationRequest, session: Session, stream: TokenStream, submitted: float
    ) -> None:
        self.request = request
        self.session = session
        self.stream = stream
        self.submitted = submitted
        self.started: float | None = None
        self.last_token: float | None = None
        self.counts: Counter[int] = Counter()
        self.generated = 0
        self.failures = 0
        """Steps that failed with this session alone in them."""

    def take(self, token: int) -> FinishReason | None:
        """Count a token; gives the finish reason if it is the last."""
        self.generated += 1
        self.counts[token] += 1
        if token in self.request.stop_token_ids:
            return "stop"
        return "length" if self.generated >= self.request.max_tokens else None
