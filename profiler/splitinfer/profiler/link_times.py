"""From the times of messages over a link to its round trip and bandwidth. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """One ordered pair. Seconds and bytes per second."""

    round_trip_median_seconds: float
    round_trip_p95_seconds: float
    bandwidth_bytes_per_second: float


def link_times(round_trips: Sequence[float], transfers: Sequence[float], nbytes: int) -> LinkTimes:
    """From seconds of small messages and of messages of ``nbytes``, each with its answer.

    The best transfer counts, because whatever disturbs only slows; what a round trip takes is no part of it. A link so
    fast that a transfer takes no longer than a round trip is taken to need a tenth of one: a lower bound of its bandwidth.
    """
    middle = median(round_trips)
    spent = max(min(transfers) - middle, middle / 10)
    p95 = quantiles(round_trips, n=20, method="inclusive")[-1] if len(round_trips) > 1 else middle
    return LinkTimes(middle, p95, nbytes / spent)
