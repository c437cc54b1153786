"""The schedule of link probes at work on a topology, and how far off estimates are. No probe runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.topologies import Topology, probed
from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, SiteLink
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.links import link_matrices
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known
from splitinfer.profiler.coordinates import Ints
from splitinfer.profiler.link_estimates import Estimates
from splitinfer.profiler.link_fit import grouped_medians
from splitinfer.profiler.link_schedule import Peer, longest_waiting, sample


@dataclass(frozen=True, slots=True, eq=False)
class Probing:
    """What the schedule did until every node had measured its sample.

    Attributes:
        a, b: the ordered pairs that were probed, each once.
        rounds: until then.
        busiest: times the most probed node was probed, in all rounds and in the worst round.
    """

    a: Ints
    b: Ints
    rounds: int
    busiest: tuple[int, int]


def probing(truth: Topology, known: bool, keep: int, most: int = 1) -> Probing:
    """Every node decides for itself, round after round, until nobody finds a peer that it has not measured."""
    peers = {
        name: Peer("", site if known else None) for name, site in zip(truth.names, truth.sites, strict=True)
    }
    index = {name: i for i, name in enumerate(truth.names)}
    wheels = {name: sample(name, peers, keep) for name in truth.names}
    measured: dict[str, dict[str, int]] = {name: {} for name in truth.names}
    total, worst, rounds = np.zeros(len(index), dtype=np.int64), 0, 0
    while any(len(measured[name]) < len(wheel) for name, wheel in wheels.items()):
        load = np.zeros(len(index), dtype=np.int64)
        for name, wheel in wheels.items():
            ages = {peer: float(rounds - at) for peer, at in measured[name].items()}
            for peer in longest_waiting(wheel, ages, rounds, most):
                measured[name][peer] = rounds
                load[index[peer]] += 1
        total, worst, rounds = total + load, max(worst, int(load.max())), rounds + 1
    pairs = np.array([(index[a], index[b]) for a, found in measured.items() for b in found], dtype=np.int64)
    return Probing(pairs[:, 0], pairs[:, 1], rounds, (int(total.max()), worst))


def measured_links(truth: Topology, pairs: Probing, seed: int) -> tuple[LinkCapacity, ...]:
    """As a reader has them."""
    trips, bands = probed(truth, pairs.a, pairs.b, np.random.default_rng([seed, 1]))
    return tuple(
        LinkCapacity(
            from_node=truth.names[a],
            to_node=truth.names[b],
            round_trip_seconds=Known(value=float(trip)),
            bandwidth_bytes_per_second=Known(value=float(band)),
        )
        for a, b, trip, band in zip(pairs.a, pairs.b, trips, bands, strict=True)
    )


def by_medians(truth: Topology, links: tuple[LinkCapacity, ...]) -> Estimates:
    """The simple rule that the estimates are held against: each pair of sites has the medians of its measured links."""
    sites = sorted(set(truth.sites))
    at = dict(zip(truth.names, (sites.index(site) for site in truth.sites), strict=True))
    pairs = np.array([at[link.from_node] * len(sites) + at[link.to_node] for link in links])
    found = []
    for name in ("round_trip_seconds", "bandwidth_bytes_per_second"):
        values = np.array([getattr(link, name).value for link in links])
        found.append(grouped_medians(pairs, values, len(sites) ** 2))
    return Estimates(
        links,
        tuple(
            SiteLink(
                from_site=sites[pair // len(sites)],
                to_site=sites[pair % len(sites)],
                round_trip_seconds=Known(value=float(found[0][pair])),
                bandwidth_bytes_per_second=Known(value=float(found[1][pair])),
            )
            for pair in np.unique(pairs)
        ),
    )


def matrices_of(
    truth: Topology, known: bool, found: Estimates, question: Question
) -> tuple[CapacitySnapshot, Floats, Floats]:
    """A snapshot of the question's nodes with these links, and its matrices in the order of the topology."""
    nodes = tuple(
        node.model_copy(update={"name": name, "site": site if known else None})
        for node, name, site in zip(question.snapshot.nodes, truth.names, truth.sites, strict=True)
    )
    snapshot = CapacitySnapshot(
        nodes=nodes, links=found.links, site_links=found.site_links, access=found.access
    )
    trips, bands, _ = link_matrices(replace(question, snapshot=snapshot), list(nodes))
    return snapshot, trips, bands


@dataclass(frozen=True, slots=True)
class Errors:
    """Of the pairs that were not probed: the part without an estimate, median and p95 of the relative error."""

    unknown: float
    round_trip: tuple[float, float]
    bandwidth: tuple[float, float]


def errors(truth: Topology, pairs: Probing, trips: Floats, bands: Floats) -> Errors | None:
    """None where every pair was probed."""
    rest = ~np.eye(len(truth.names), dtype=np.bool_)
    rest[pairs.a, pairs.b] = False
    if not rest.any():
        return None
    usable = rest & (bands > 0)

    def of(found: Floats, true: Floats) -> tuple[float, float]:
        off = np.abs(found[usable] - true[usable]) / true[usable]
        return (float(np.median(off)), float(np.quantile(off, 0.95))) if len(off) else (np.nan, np.nan)

    unknown = 1 - float(usable.sum() / rest.sum())
    return Errors(unknown, of(trips, truth.round_trips), of(bands, truth.bandwidths))
