"""The last snapshot, ageing: what is known while its source does not answer.

A snapshot that cannot be renewed stays, and grows older by a clock that nobody sets, until every reading in it is stale. The
reason is kept beside it. A source whose own clock goes back is not believed: what it has from before looks younger than it
is, and nothing newer is there until its clock has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.profiler.sources import SourceError

CLOCK_SLACK_SECONDS = 5.0
"""By so much the clocks of two servers behind one address may differ."""


def clock() -> float:
    """Seconds that nobody sets; the time that this machine slept counts, since nodes did not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Held:
    """What is known at one time.

    Attributes:
        snapshot: the last one; None before there was any.
        now_seconds: the time, by the clock that the snapshot is dated by: for `Question.now_seconds`.
        last_error: why there is no newer one; None where the last question was answered.
        failing_seconds: for how long; 0 where it was answered.
    """

    snapshot: CapacitySnapshot | None
    now_seconds: float
    last_error: str | None = None
    failing_seconds: float = 0.0


class Holder:
    """Asks when told to, and holds the answer."""

    def __init__(
        self, read: Callable[[], Awaitable[CapacitySnapshot]], clock: Callable[[], float] = clock
    ) -> None:
        """``read`` raises SourceError; ``clock`` is monotonic, in seconds."""
        self._read = read
        self._clock = clock
        self._snapshot: CapacitySnapshot | None = None
        self._asked_at = 0.0
        self._error: str | None = None
        self._failing_since = 0.0

    async def refresh(self) -> Held:
        """Ask once. What goes wrong is in what is returned, and raised never."""
        asked_at = self._clock()
        try:
            taken = await self._read()
            self._check_clock(taken)
        except SourceError as error:
            if self._error is None:
                self._failing_since = asked_at
            self._error = str(error)
        else:
            # Its readings are as of some time after the question: counted from it, they are never too young.
            self._snapshot, self._asked_at, self._error = taken, asked_at, None
        return self.held()

    def held(self) -> Held:
        """What is known now."""
        now = self._clock()
        if self._snapshot is None:
            dated = 0.0
        else:
            dated = self._snapshot.taken_at_seconds + max(0.0, now - self._asked_at)
        failing = 0.0 if self._error is None else now - self._failing_since
        return Held(self._snapshot, dated, self._error, failing)

    def _check_clock(self, taken: CapacitySnapshot) -> None:
        if self._snapshot is None:
            return
        back = self._snapshot.taken_at_seconds - taken.taken_at_seconds
        if back > CLOCK_SLACK_SECONDS:
            raise SourceError(
                f"the clock of the source went back by {back:.0f} s: what it has is older than it looks"
            )
