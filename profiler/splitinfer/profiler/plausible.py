"""Which values of a series can be true. Pure.

The bounds are those of any machine there is, with air: a value beyond them has another unit than its name says, or comes
from a fault. Such a value is unknown; that it were wrong only by a factor nobody can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.profiler import series as s


@dataclass(frozen=True, slots=True)
class Bounds:
    """From ``least`` to ``most``, both allowed; ``whole`` has no fractions."""

    least: float
    most: float
    whole: bool = False


_RATIO = Bounds(0.0, 1.0)
_AGE = Bounds(0.0, 1e9)
_BYTES = Bounds(0.0, 1e15)
_CPUS = Bounds(1e-3, 1e5)
_OVERHEAD = Bounds(0.0, 60.0)
_BLOCK = Bounds(1e-9, 600.0)
_TRIP = Bounds(1e-9, 60.0)

BOUNDS: Mapping[str, Bounds] = {
    s.NODE_AGE.name: _AGE,
    s.NODE_MEMORY.name: _BYTES,
    s.NODE_DEVICE_MEMORY.name: _BYTES,
    s.NODE_CPUS.name: _CPUS,
    s.NODE_MACHINE_CPUS.name: Bounds(1, 1e5, whole=True),
    s.NODE_CPU_BUSY.name: _RATIO,
    s.NODE_RUNNABLE.name: Bounds(0.0, 1e6),
    s.NODE_SERVING.name: _RATIO,
    s.PROBE_AGE.name: _AGE,
    s.PROBE_THREADS.name: Bounds(1, 1e4, whole=True),
    s.PROBE_BANDWIDTH.name: Bounds(1e6, 1e15),
    s.PROBE_FLOPS.name: Bounds(1e6, 1e19),
    s.PROBE_BLOCK_OVERHEAD.name: _OVERHEAD,
    s.PROBE_STEP_OVERHEAD.name: _OVERHEAD,
    s.PROBE_SERIALISATION.name: Bounds(1e4, 1e15),
    s.PROBE_BLOCK_DECODE.name: _BLOCK,
    s.PROBE_BLOCK_PREFILL.name: _BLOCK,
    s.PROBE_CALIBRATION.name: Bounds(1e-2, 1e2),
    s.PROBE_CALIBRATION_AGE.name: _AGE,
    s.LINK_AGE.name: _AGE,
    s.LINK_MEDIAN.name: _TRIP,
    s.LINK_P95.name: _TRIP,
    s.LINK_BANDWIDTH.name: Bounds(1e2, 1e15),
}
"""Of the gauges that a snapshot is made of."""


def why_not(name: str, value: float, bounds: Bounds | None = None) -> str | None:
    """What is wrong with a value of a series, or None; ``bounds`` for one that is not in `BOUNDS`."""
    bounds = BOUNDS[name] if bounds is None else bounds
    if math.isnan(value):
        return f"{name} is NaN"
    if math.isinf(value):
        return f"{name} is infinite"
    if not bounds.least <= value <= bounds.most:
        return (
            f"{name} is {value:g}, which is not from {bounds.least:g} to {bounds.most:g}; is its unit right?"
        )
    if bounds.whole and value != int(value):
        return f"{name} is {value:g}, which is no whole number"
    return None
