"""A chain that is broken: since when, how many repairs failed, and how long its requests may still wait.

A repair counts once a step has come back through it. Until then the deadline of the first break stays, or a chain
that breaks over and over would let its requests wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 10.0
"""How often a recovery looks again whether a host has come back: nobody may be there to say so."""

Steps = tuple[int, int]
"""Steps started and completed."""


class Breakage:
    """The state of what broke.

    Attributes:
        reason: why the chain is broken; None while it is whole.
        recoveries: repairs that failed since it broke.
        fruitless: chains in a row that were committed, and broke before they completed a step.
    """

    def __init__(
        self, steps: Callable[[], Steps], recovery_seconds: float, on_deadline: Callable[[], None]
    ) -> None:
        """Watch over a pipeline.

        Args:
            steps: its steps over all epochs.
            recovery_seconds: how long requests wait for a repair.
            on_deadline: called when that has passed and no repair has been proven.
        """
        self._steps = steps
        self.recovery_seconds = recovery_seconds
        self._on_deadline = on_deadline
        self.reason: str | None = None
        self.recoveries = 0
        self.fruitless = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._at_switch: Steps = (0, 0)

    def broke(self, reason: str) -> bool:
        """The chain broke; whether that is news: a break is often reported from several sides."""
        if self.reason is not None:
            return False
        self.reason, self.recoveries = reason, 0
        started, completed = self._since_switch()
        if completed:
            self.fruitless = 0
        elif started and (self.fruitless or self._deadline is not None):
            self.fruitless += 1
        # A chain that broke again before its first step goes on under the deadline of the first break. When that
        # has passed, whoever came since has one of its own.
        if not self.fruitless or self._deadline is None:
            self.cancel()
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self.recovery_seconds, self._passed)
        return True

    def mended(self) -> None:
        """A chain was put together. The deadline stays until a step has shown that it works."""
        self.reason = None
        self._at_switch = self._steps()

    @property
    def pause_seconds(self) -> float:
        """Before a repair, once repairs have been fruitless: twice as long each time."""
        return min(RETRY_SECONDS * float(2 ** (self.fruitless - 1)), LONGEST_RETRY_SECONDS)

    def cancel(self) -> None:
        """Wait for no deadline any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _passed(self) -> None:
        self._deadline = None
        if self.reason is None and (not self.fruitless or self._since_switch()[1]):
            return  # it serves
        self._on_deadline()

    def _since_switch(self) -> Steps:
        """In the chain that was switched to last."""
        now, then = self._steps(), self._at_switch
        return now[0] - then[0], now[1] - then[1]
