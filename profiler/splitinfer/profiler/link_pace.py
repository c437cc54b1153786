"""How often an agent probes links, from what it may send. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from splitinfer.profiler.budget import BURST, HOUR


@dataclass(frozen=True, slots=True)
class Pace:
    """The same in each round, so that the schedule's wheel turns evenly.

    Attributes:
        most: links of one round.
        every: intervals of the agent from one round of links to the next.
        fresh_rounds: rounds after which a reading is stale.
    """

    most: int
    every: int
    fresh_rounds: int

    @property
    def keep(self) -> int:
        """Links that are kept measured: each is probed again before its reading is stale."""
        return self.most * (self.fresh_rounds - 1)


def pace(bytes_per_hour: float, probe_bytes: int, interval: float, fresh_seconds: float) -> Pace | None:
    """What a budget allows for ever; None where it allows nothing.

    Args:
        bytes_per_hour: the budget. What a new agent spends at once (`splitinfer.profiler.budget`) is not counted on.
        probe_bytes: that one probe sends at most.
        interval: seconds between two of the agent's rounds.
        fresh_seconds: after which a reading is stale.
    """
    links = bytes_per_hour * (1 - BURST) * interval / HOUR / probe_bytes
    if links <= 0:
        return None
    every = max(1, ceil(1 / links))
    return Pace(int(links * every + 1e-9), every, max(2, int(fresh_seconds / (every * interval))))
