"""What may be spent per hour, and no more. Pure: the seconds of a monotonic clock come in."""

from __future__ import annotations

from dataclasses import dataclass, replace

HOUR = 3600.0
BURST = 0.1
"""Share of the budget that may be spent at once: the first round, and a change of what the node is."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A bucket that fills steadily (token bucket).

    It holds `BURST` of an hour's budget and fills with the rest of it in an hour, so that no hour, wherever it begins,
    sees more than the budget, but for what the last expense took beyond its estimate.

    Attributes:
        per_hour: of whatever is spent, CPU seconds or bytes; 0 allows nothing.
        left: now; below 0 after an expense that was larger than thought.
        at: when that was.
    """

    per_hour: float
    left: float
    at: float

    def until(self, now: float) -> Budget:
        """Filled up to ``now``."""
        filled = self.left + max(0.0, now - self.at) * self.per_hour * (1 - BURST) / HOUR
        return replace(self, left=min(filled, self.per_hour * BURST), at=max(now, self.at))

    def allows(self, estimate: float) -> bool:
        """Whether so much is there. What is never in the bucket at once is begun with a full one, and paid off after."""
        return self.per_hour > 0 and self.left >= min(estimate, self.per_hour * BURST)

    def spent(self, amount: float) -> Budget:
        """After an expense."""
        return replace(self, left=self.left - amount)


def budget(per_hour: float, now: float) -> Budget:
    """A full one."""
    return Budget(per_hour, per_hour * BURST, now)
