"""Steps in flight: when each was sent, which has had no answer for too long, and whether there is none."""

from __future__ import annotations

import asyncio


class Flight:
    """Times of the steps that are on their way.

    Attributes:
        started: steps that were sent, over all epochs.
        completed: steps that came back right. Together they show whether a chain works.
    """

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._landed = asyncio.Event()
        self._landed.set()
        self._heard = float("-inf")
        """When a step was last heard of."""
        self.started = 0
        self.completed = 0

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, step: int, now: float) -> None:
        """A step leaves."""
        self._sent[step] = now
        self._landed.clear()
        self.started += 1

    def when(self, step: int) -> float:
        """When it left. Raises KeyError for one that is not in flight."""
        return self._sent[step]

    def over(self, step: int, now: float) -> None:
        """A step came back, or failed."""
        if self._sent.pop(step, None) is not None:
            self._heard = now
        if not self._sent:
            self._landed.set()

    def give_up(self) -> None:
        """Nobody waits for any of them any more."""
        self._sent.clear()
        self._landed.set()

    async def landed(self) -> None:
        """Wait until no step is in flight."""
        await self._landed.wait()

    def overdue(self, now: float, seconds: float) -> int | None:
        """The oldest step, if the chain has given no answer for longer than that since it was sent.

        Steps wait for those before them, the chunks of a long prompt for one another: while they come back one by one,
        none of them is late.
        """
        if not self._sent:
            return None
        step, sent = min(self._sent.items(), key=lambda item: item[1])
        return step if now - max(sent, self._heard) > seconds else None
