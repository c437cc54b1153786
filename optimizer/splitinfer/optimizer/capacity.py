"""The capacity snapshot: nodes and links as measured at one time.

What was never measured, or too long ago, is *unknown*. A node with an unknown value is not eligible and a link with
one is not used; both are named, with the reason. Sites keep a snapshot of many nodes short: a link between two nodes
that nobody measured takes the reading of their sites, and what the nodes' own access makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from splitinfer.optimizer.access import NodeAccess, check_access
from splitinfer.optimizer.values import (
    UNKNOWN,
    Fraction,
    Known,
    Name,
    NonNegative,
    OptimizerInputError,
    Reading,
    Unknown,
    Value,
)

MAX_NODES = 2000
"""Link matrices grow with the square: at 2,000 nodes each takes 32 MB."""

NODE_READINGS = (
    "free_memory_bytes",
    "memory_bandwidth_bytes_per_second",
    "block_overhead_seconds",
    "step_overhead_seconds",
    "serialisation_bytes_per_second",
    "background_utilisation",
)
"""The readings that a node must have to be eligible, besides FLOP/s for the dtype."""
_SPEEDS = ("memory_bandwidth_bytes_per_second", "serialisation_bytes_per_second")

Kind = Literal["state", "speed", "link"]
"""What a reading tells of: the state that a node is in, what it can do, or what a link can do."""
_STATE = ("free_memory_bytes", "background_utilisation")


def kind_of(name: str) -> Kind:
    """The kind of a node's reading, by its name as `NodeCapacity.readings` gives it."""
    return "state" if name in _STATE else "speed"


class NodeCapacity(Value):
    """What one node can do now."""

    name: Name
    site: Name | None = None
    labels: Mapping[str, str] = {}
    trusted: bool = False
    """Whether sensitive blocks and the entry may run here: the hard mask."""
    trust: Fraction | None = None
    """Soft trust, 0 to 1, for exposure; absent means 1 on trusted nodes, 0 on others."""
    free_memory_bytes: Reading = UNKNOWN
    memory_bandwidth_bytes_per_second: Reading = UNKNOWN
    """Achieved, not from a data sheet."""
    flops_per_second: Mapping[str, Reading] = {}
    """Achieved, per dtype, at the shapes of prefill."""
    block_overhead_seconds: Reading = UNKNOWN
    """Time that a block takes over the roofline (kernel starts, normalisation)."""
    step_overhead_seconds: Reading = UNKNOWN
    """Time that a segment takes per step whatever its blocks (scheduling, frames)."""
    serialisation_bytes_per_second: Reading = UNKNOWN
    """How fast activations are put on the wire or taken off it."""
    background_utilisation: Reading = UNKNOWN
    """Share of the node that others use, 0 to below 1."""

    @property
    def soft_trust(self) -> float:
        """Trust for exposure."""
        return (1.0 if self.trusted else 0.0) if self.trust is None else self.trust

    def readings(self, dtype: str) -> Iterator[tuple[str, Known | Unknown]]:
        """Name and reading of everything that planning in ``dtype`` needs."""
        for name in NODE_READINGS:
            yield name, getattr(self, name)
        yield f"flops_per_second[{dtype}]", self.flops_per_second.get(dtype, UNKNOWN)


class LinkCapacity(Value):
    """An ordered pair of nodes."""

    from_node: Name
    to_node: Name
    round_trip_seconds: Reading = UNKNOWN
    bandwidth_bytes_per_second: Reading = UNKNOWN


class SiteLink(Value):
    """An ordered pair of sites, perhaps the same one: stands for every pair of their nodes that has no reading."""

    from_site: Name
    to_site: Name
    round_trip_seconds: Reading = UNKNOWN
    bandwidth_bytes_per_second: Reading = UNKNOWN


class CapacitySnapshot(Value):
    """Nodes and links at one time."""

    taken_at_seconds: NonNegative = 0.0
    """When it was taken, in seconds since the epoch."""
    stale_after_seconds: Annotated[float, Field(gt=0)] = 120.0
    """A reading older than this is unknown, unless its kind has a bound of its own."""
    speeds_stale_after_seconds: Annotated[float, Field(gt=0)] | None = None
    """The bound of what a node can do: it is probed less often than memory and load are read, and changes less."""
    links_stale_after_seconds: Annotated[float, Field(gt=0)] | None = None
    """The bound of links: they are measured in rotation."""
    nodes: tuple[NodeCapacity, ...]
    links: tuple[LinkCapacity, ...] = ()
    site_links: tuple[SiteLink, ...] = ()
    access: tuple[NodeAccess, ...] = ()
    """What nodes themselves add to links that nobody measured."""

    def model_post_init(self, _context: object) -> None:
        """Names are unique, links lead somewhere, speeds are not zero. Raises OptimizerInputError."""
        _check_count(len(self.nodes))
        seen: set[str] = set()
        sites = {node.site for node in self.nodes}
        for index, node in enumerate(self.nodes):
            if node.name in seen:
                raise OptimizerInputError(f"nodes[{index}].name", f"{node.name} is there twice; keep one")
            seen.add(node.name)
            _check_node(index, node)
        pairs: set[tuple[str, str]] = set()
        for index, link in enumerate(self.links):
            for field, end in (("fromNode", link.from_node), ("toNode", link.to_node)):
                if end not in seen:
                    raise OptimizerInputError(f"links[{index}].{field}", f"no node {end!r} in nodes")
            if link.from_node == link.to_node:
                raise OptimizerInputError(f"links[{index}].toNode", f"{link.to_node} to itself is no link")
            _check_pair(f"links[{index}]", (link.from_node, link.to_node), pairs, link)
        pairs = set()
        for index, between in enumerate(self.site_links):
            for field, end in (("fromSite", between.from_site), ("toSite", between.to_site)):
                if end not in sites:
                    raise OptimizerInputError(f"siteLinks[{index}].{field}", f"no node is at site {end!r}")
            _check_pair(f"siteLinks[{index}]", (between.from_site, between.to_site), pairs, between)
        check_access(self.access, seen)

    def age_at(self, now_seconds: float) -> float:
        """Seconds since it was taken; a clock that went backwards makes nothing younger than it was."""
        return max(0.0, now_seconds - self.taken_at_seconds)

    def bound_seconds(self, kind: Kind) -> float:
        """The age up to which a reading of this kind counts."""
        own = {"speed": self.speeds_stale_after_seconds, "link": self.links_stale_after_seconds}.get(kind)
        return self.stale_after_seconds if own is None else own

    def usable(self, reading: Known | Unknown, now_seconds: float, kind: Kind = "state") -> float | None:
        """The value, or None where it is unknown or stale by now."""
        if isinstance(reading, Unknown):
            return None
        if reading.age_seconds + self.age_at(now_seconds) > self.bound_seconds(kind):
            return None
        return reading.value

    def why_unusable(self, reading: Known | Unknown, now_seconds: float, kind: Kind = "state") -> str:
        """The reason, for a reading that `usable` gives None for."""
        if isinstance(reading, Unknown):
            return reading.unknown
        age = reading.age_seconds + self.age_at(now_seconds)
        return f"stale: {age:.0f} s old, at most {self.bound_seconds(kind):.0f} s ({reading.source})"


def _check_count(count: int) -> None:
    if count == 0:
        raise OptimizerInputError("nodes", "no node; a plan needs at least one")
    if count > MAX_NODES:
        raise OptimizerInputError(
            "nodes", f"{count:,} nodes, at most {MAX_NODES:,}; narrow the candidates with placement.nodes"
        )


def _check_node(index: int, node: NodeCapacity) -> None:
    load = node.background_utilisation
    if isinstance(load, Known) and load.value >= 1:
        raise OptimizerInputError(
            f"nodes[{index}].backgroundUtilisation", f"{load.value} is not below 1; write the share in use"
        )
    speeds = [(name, getattr(node, name)) for name in _SPEEDS]
    speeds += [(f"flops_per_second.{dtype}", reading) for dtype, reading in node.flops_per_second.items()]
    for name, reading in speeds:
        if isinstance(reading, Known) and reading.value <= 0:
            raise OptimizerInputError(f"nodes[{index}].{_camel(name)}", "0 is no speed; write unknown")


def _check_pair(
    where: str, pair: tuple[str, str], pairs: set[tuple[str, str]], link: LinkCapacity | SiteLink
) -> None:
    if pair in pairs:
        raise OptimizerInputError(where, f"{pair[0]} to {pair[1]} is there twice; keep one")
    pairs.add(pair)
    bandwidth = link.bandwidth_bytes_per_second
    if isinstance(bandwidth, Known) and bandwidth.value <= 0:
        raise OptimizerInputError(f"{where}.bandwidthBytesPerSecond", "0 is no bandwidth; write unknown")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)
