"""From measurements to the optimizer's capacity snapshot. Pure: ages and sources come in, nothing is made up.

What was not measured, or could not be, is unknown with its reason, so that the optimizer names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.speeds import Speeds

Measured = Known | Unknown

MAX_UTILISATION = 0.99
"""However many others there are, a little is left: the optimizer divides times by what is."""


@dataclass(frozen=True, slots=True)
class NodeMeasurement:
    """What one node said of itself, and how old that was when it was gathered.

    Attributes:
        name: of the node.
        speeds: per dtype; a string says why they are unknown.
        free_memory_bytes: that a host may take; None where the machine does not say.
        left: share of its full speed that a host has beside others (`splitinfer.profiler.contention.share`); None where
            it is not known what others do.
        age_seconds: of all of it.
        source: of all of it.
    """

    name: str
    speeds: Mapping[str, Speeds | str]
    free_memory_bytes: int | None
    left: float | None
    age_seconds: float = 0.0
    source: str = "agent"
    site: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False


def node_capacity(measured: NodeMeasurement, dtype: str) -> NodeCapacity:
    """A node as the optimizer takes it, for models in ``dtype``."""

    def known(value: float | None, why: str) -> Measured:
        if value is None:
            return Unknown(unknown=why[:200])
        return Known(value=value, age_seconds=measured.age_seconds, source=measured.source)

    found = measured.speeds.get(dtype, f"no probe in {dtype}")
    speeds = found if isinstance(found, Speeds) else None
    why = found if isinstance(found, str) else ""
    load = None if measured.left is None else min(max(1.0 - measured.left, 0.0), MAX_UTILISATION)

    def speed(name: str) -> Measured:
        return known(None if speeds is None else float(getattr(speeds, name)), why)

    return NodeCapacity(
        name=measured.name,
        site=measured.site,
        labels=measured.labels,
        trusted=measured.trusted,
        free_memory_bytes=known(measured.free_memory_bytes, "the node does not say what memory is free"),
        memory_bandwidth_bytes_per_second=speed("memory_bandwidth_bytes_per_second"),
        flops_per_second={dtype: speed("flops_per_second")},
        block_overhead_seconds=speed("block_overhead_seconds"),
        step_overhead_seconds=speed("step_overhead_seconds"),
        serialisation_bytes_per_second=speed("serialisation_bytes_per_second"),
        background_utilisation=known(load, "it is not known what others do on its CPUs"),
    )


def link_capacity(pair: tuple[str, str], times: LinkTimes | str, age_seconds: float = 0.0) -> LinkCapacity:
    """An ordered pair; a string says why it is unknown."""
    if isinstance(times, str):
        unknown = Unknown(unknown=times[:200])
        return LinkCapacity(
            from_node=pair[0],
            to_node=pair[1],
            round_trip_seconds=unknown,
            bandwidth_bytes_per_second=unknown,
        )
    return LinkCapacity(
        from_node=pair[0],
        to_node=pair[1],
        round_trip_seconds=Known(
            value=times.round_trip_median_seconds, age_seconds=age_seconds, source="probe"
        ),
        bandwidth_bytes_per_second=Known(
            value=times.bandwidth_bytes_per_second, age_seconds=age_seconds, source="probe"
        ),
    )


def snapshot(
    nodes: tuple[NodeMeasurement, ...],
    links: Mapping[tuple[str, str], LinkTimes | str],
    dtype: str,
    now_seconds: float,
) -> CapacitySnapshot:
    """Everything at one time, in seconds since the epoch."""
    return CapacitySnapshot(
        taken_at_seconds=now_seconds,
        nodes=tuple(node_capacity(node, dtype) for node in nodes),
        links=tuple(link_capacity(pair, times) for pair, times in links.items()),
    )
