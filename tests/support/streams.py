"""Waiting for an entry that runs on the test's own loop, and for the rest of its streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from tests.support.twins import Twin

PLENTY = 60


async def until(condition: Callable[[], bool], what: str, seconds: float = PLENTY) -> None:
    """Wait for something that the entry does in its own time."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # state of the code under test, not an event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s for {what}") from None


async def finish(stream: AsyncIterator[object], twin: Twin) -> None:
    """The rest of a stream gives the tokens of its twin."""
    tokens = [event.token async for event in stream]  # type: ignore[attr-defined]
    assert tuple(tokens) == twin.tokens
