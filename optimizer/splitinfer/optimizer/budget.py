"""How long a search may go on: seconds of a clock that the caller hands in, or labels, which no clock has to count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MAX_LABELS = 3_000_000
"""Labels of one pass; about half a gigabyte."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds by ``clock``; without a clock, only labels count, and the same question takes the same steps anywhere."""

    seconds: float = float("inf")
    clock: Callable[[], float] | None = None
    labels: int = MAX_LABELS

    def start(self) -> Timer:
        """The budget from now on."""
        return Timer(self.clock, self.seconds + (self.clock() if self.clock else 0.0), self.labels)


@dataclass(slots=True)
class Timer:
    """A budget that runs."""

    clock: Callable[[], float] | None
    end: float
    labels: int
    used: dict[str, int] = field(default_factory=dict)
    """Work done, by kind: for benchmarks."""

    def expired(self) -> bool:
        """Whether no time is left."""
        return self.clock is not None and self.clock() >= self.end

    def left(self) -> float:
        """Seconds left; infinite without a clock."""
        return float("inf") if self.clock is None else max(0.0, self.end - self.clock())

    def count(self, kind: str, amount: int = 1) -> None:
        """Note work."""
        self.used[kind] = self.used.get(kind, 0) + amount
