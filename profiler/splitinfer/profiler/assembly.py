"""From samples to the capacity snapshot. Pure.

Each value says where it comes from and how old it is. The agent's own word comes first; others are asked where it says
nothing. What it says wrongly, contradictorily or too long ago is not replaced by anybody's: it is unknown, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.values import Known, OptimizerInputError, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import Agent, Reading, StaleBounds, is_stale, unknown
from splitinfer.profiler.claims import Said, said_by_node
from splitinfer.profiler.contention import MAX_UTILISATION, share
from splitinfer.profiler.inventory import Entry, Inventory
from splitinfer.profiler.link_estimates import Estimates, covered, estimate
from splitinfer.profiler.node_speeds import Asked, speeds, threads
from splitinfer.profiler.others import Other, others_by_node
from splitinfer.profiler.sources import Gathered, SourceError

SILENT = "no agent speaks for this node"


def assemble(
    gathered: Gathered,
    asked: Asked,
    inventory: Inventory,
    bounds: StaleBounds,
) -> CapacitySnapshot:
    """The snapshot of all nodes that an agent speaks for or that the inventory has.

    Raises:
        SourceError: there is no such node, or there are more than a snapshot takes.
    """
    said = said_by_node(gathered.samples, gathered.now_seconds)
    others = others_by_node(gathered.samples, gathered.now_seconds, bounds)
    nodes = []
    for name in sorted({*said, *inventory.nodes}):
        agent = Agent(said.get(name, Said({}, SILENT)), bounds)
        entry = inventory.nodes.get(name, Entry())
        nodes.append(_node(name, agent, others.get(name, Other()), entry, asked, bounds))
    if not nodes:
        raise SourceError(
            f"no agent was scraped in the last {bounds.window_seconds:.0f} s, and the inventory has no node"
        )
    measured = _links({node.name for node in nodes}, said, bounds)
    found = finished(nodes, measured)
    try:
        return CapacitySnapshot(
            taken_at_seconds=gathered.now_seconds,
            stale_after_seconds=bounds.state,
            speeds_stale_after_seconds=bounds.speeds,
            links_stale_after_seconds=bounds.links,
            nodes=tuple(nodes),
            links=found.links,
            site_links=found.site_links,
            access=found.access,
        )
    except OptimizerInputError as error:
        raise SourceError(f"what was gathered is no snapshot: {error}") from None


def _node(
    name: str, agent: Agent, other: Other, entry: Entry, asked: Asked, bounds: StaleBounds
) -> NodeCapacity:
    found = dict(speeds(agent, asked, bounds))
    return NodeCapacity(
        name=name,
        site=entry.site or other.zone,
        labels=entry.labels,
        trusted=entry.trusted,
        trust=entry.trust,
        free_memory_bytes=_memory(agent, other),
        background_utilisation=_utilisation(agent, other, asked),
        flops_per_second={asked.dtype: found.pop("flops_per_second")},
        **found,
    )


def _memory(agent: Agent, other: Other) -> Reading:
    """Of the device that hosts use. A GPU's is never that of the machine, nor the other way round."""
    if agent.problem not in (None, SILENT):
        return agent.state(s.NODE_MEMORY)
    devices = [device for _, device in agent.labels_of(s.NODE_INFO)]
    if len(devices) > 1:
        return unknown(f"the agent names the devices {' and '.join(devices)}")
    if not devices or devices[0] == "cpu":
        own, series, instead = agent.state(s.NODE_MEMORY), s.NODE_MEMORY, other.memory
        if not devices and agent.has(s.NODE_DEVICE_MEMORY):
            return unknown("the agent does not say whether hosts use its GPU")
    else:
        own, series, instead = agent.state(s.NODE_DEVICE_MEMORY), s.NODE_DEVICE_MEMORY, other.gpu_memory
    return own if agent.has(series) or instead is None else instead


def _utilisation(agent: Agent, other: Other, asked: Asked) -> Reading:
    """``1 - share``: what beside others is left to as many threads as the probe had.

    Where nobody counts the threads that want to run, there are at least as many as CPUs are busy. node_exporter's count has
    our own hosts in it, so it is the last to be asked.
    """
    ours = threads(agent, asked)
    if isinstance(ours, Unknown):
        return unknown(f"no probe says with how many threads: {ours.unknown}")
    cpus: Reading = agent.state(s.NODE_MACHINE_CPUS)
    if agent.has(s.NODE_RUNNABLE):
        wanting = agent.state(s.NODE_RUNNABLE)
    elif agent.has(s.NODE_CPU_BUSY):
        busy = agent.state(s.NODE_CPU_BUSY)
        wanting = (
            busy.model_copy(update={"value": busy.value * cpus.value})
            if isinstance(busy, Known) and isinstance(cpus, Known)
            else busy
        )
    elif other.busy is not None:
        wanting = other.busy
        if isinstance(wanting, Known) and not agent.has(s.NODE_MACHINE_CPUS):
            cpus = wanting.model_copy(update={"value": float(other.cpus)})
    else:
        wanting = agent.state(s.NODE_RUNNABLE)
    if isinstance(cpus, Unknown) or isinstance(wanting, Unknown):
        return wanting if isinstance(wanting, Unknown) else cpus
    # Threads beyond the CPUs take turns among themselves, as they did in the probe.
    left = share(cpus.value, wanting.value, max(1, min(int(ours.value), int(cpus.value))))
    return Known(
        value=min(1.0 - left, MAX_UTILISATION),
        age_seconds=max(cpus.age_seconds, wanting.age_seconds),
        source=wanting.source,
    )


def finished(nodes: Sequence[NodeCapacity], measured: Sequence[LinkCapacity]) -> Estimates:
    """The links of the snapshot: those that were measured, and what can be told from them of all others.

    The one place where estimates join; a measured link always wins over an estimated one, also where it is unknown because
    nobody answered, or because it contradicts itself. A link whose readings are stale is one that nobody measures any
    more: it is estimated, and where it cannot be it says that it is stale.
    """
    sites = {node.name: node.site for node in nodes}
    stale: list[LinkCapacity] = []
    current: list[LinkCapacity] = []
    for link in measured:
        both = (link.round_trip_seconds, link.bandwidth_bytes_per_second)
        (stale if all(map(is_stale, both)) else current).append(link)
    found = estimate(sites, current)
    covers = covered(found, sites)
    left = tuple(link for link in stale if not covers(link.from_node, link.to_node))
    return replace(found, links=(*found.links, *left))


def _links(nodes: set[str], said: Mapping[str, Said], bounds: StaleBounds) -> tuple[LinkCapacity, ...]:
    """Every ordered pair that an agent tells of, measured; what nobody measured is to be estimated from these.

    A peer that no agent speaks for and the inventory does not have is no node: hearsay makes none.
    """
    links = []
    for name in sorted(nodes & said.keys()):
        agent = Agent(said[name], bounds)
        for (peer,) in agent.labels_of(*s.LINK_SERIES):
            if peer in nodes and peer != name:
                links.append(_link(name, peer, agent))
    return tuple(links)


def _link(name: str, peer: str, agent: Agent) -> LinkCapacity:
    trip, high = agent.link(s.LINK_MEDIAN, peer), agent.link(s.LINK_P95, peer)
    if isinstance(trip, Known) and isinstance(high, Known) and high.value < trip.value:
        trip = unknown(f"{s.LINK_P95.name} is below the median")
    band = agent.link(s.LINK_BANDWIDTH, peer)
    if agent.problem is None and not (agent.has(s.LINK_MEDIAN, peer) or agent.has(s.LINK_BANDWIDTH, peer)):
        trip = band = unknown("it was probed in vain")
    return LinkCapacity(
        from_node=name, to_node=peer, round_trip_seconds=trip, bandwidth_bytes_per_second=band
    )
