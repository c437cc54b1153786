"""Which probes are due, and whether one may begin. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from splitinfer.profiler.budget import Budget
from splitinfer.profiler.targets import ProbeTarget

Refusal = Literal["over_budget", "serving"]
CPUS_CHANGED = 0.05
"""A change of the usable CPUs by more than this share makes every probe due."""


def due(
    probes: Sequence[ProbeTarget],
    tried: Mapping[ProbeTarget, float],
    now: float,
    interval: float,
    cpus: tuple[float | None, float],
) -> tuple[ProbeTarget, ...]:
    """Those whose turn it is: never tried first, then the longest ago.

    Args:
        probes: all there are.
        tried: when each was last begun or refused.
        now: on the same monotonic clock.
        interval: seconds between two tries.
        cpus: usable when the last round of probes began (None before any), and now.
    """
    before, usable = cpus
    changed = before is not None and abs(usable - before) > CPUS_CHANGED * max(before, usable)
    turn = [probe for probe in probes if changed or now - tried.get(probe, float("-inf")) >= interval]
    return tuple(sorted(turn, key=lambda probe: tried.get(probe, float("-inf"))))


def refusal(budget: Budget, estimate: float, serving_ratio: float | None, threshold: float) -> Refusal | None:
    """Why a probe does not begin, or None.

    Args:
        budget: CPU seconds, filled up to now.
        estimate: CPU seconds that it took last time.
        serving_ratio: share of the last window that hosts spent in steps; None where it is not known, and then they
            may be serving.
        threshold: that the ratio may not pass.
    """
    if serving_ratio is None or serving_ratio > threshold:
        return "serving"
    return None if budget.allows(estimate) else "over_budget"
