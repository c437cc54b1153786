"""From the links that were measured to all the others, as the optimizer's snapshot has them: by sites, or by positions.

A measured pair stays as it was measured, also where that is unknown. For the others the snapshot gets the readings of pairs
of sites, and of each node its access: both are fitted to the measured links (`splitinfer.profiler.link_fit`). Where a node
has no site, or two sites have too few links between them, positions stand in (`splitinfer.profiler.coordinates`).

Every estimate says in its source that it is one and what it rests on, and is as old as the oldest of that. With fewer than
MIN_SAMPLES there is none: the pair stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitinfer.optimizer.access import NodeAccess
from splitinfer.optimizer.capacity import LinkCapacity, SiteLink
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler.coordinates import embed
from splitinfer.profiler.link_fit import Floats, Ints, Samples, fit_bandwidths, fit_round_trips

MIN_SAMPLES = 3
"""Links measured: between two sites (or all that there are, if fewer), and of a node out, in, and in either direction."""
MIN_POSITION_SAMPLES = 6
"""Round trips measured of a position: twice its dimensions."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What a `CapacitySnapshot` takes.

    Attributes:
        links: the measured ones; a reading that went stale is left out, so that its pair is estimated again.
        site_links: estimates, one per ordered pair of sites that has enough samples.
        access: one per node, unknown where there are too few samples; none where every pair is measured.
    """

    links: tuple[LinkCapacity, ...]
    site_links: tuple[SiteLink, ...] = ()
    access: tuple[NodeAccess, ...] = ()


def estimate(
    sites: Mapping[str, str | None],
    links: Sequence[LinkCapacity],
    stale_after_seconds: float = float("inf"),
    seed: int = 0,
) -> Estimates:
    """Everything that can be said of the links between the nodes of ``sites``.

    Args:
        sites: by node; None where no site is known.
        links: what was measured. A reading that is Unknown says that its pair was tried and stays unknown; leave out
            pairs that nobody tried.
        stale_after_seconds: readings older than that count as not there.
        seed: of where positions begin; the same input and seed give the same estimates.

    Raises:
        ValueError: a link that ends at none of the nodes. How many nodes there may be, the snapshot says.
    """
    for link in links:
        for end in (link.from_node, link.to_node):
            if end not in sites:
                raise ValueError(f"links: no node {end!r} in sites")
    kept = tuple(link for link in links if not _is_stale(link, stale_after_seconds))
    if len({(link.from_node, link.to_node) for link in kept}) == len(sites) * (len(sites) - 1):
        return Estimates(kept)
    return _estimates(sites, kept, seed)


def covered(found: Estimates, sites: Mapping[str, str | None]) -> Callable[[str, str], bool]:
    """Whether an estimate stands for the link from one node to another, were it not measured."""
    pairs = {(each.from_site, each.to_site) for each in found.site_links}
    placed = {
        each.node: each.position_seconds is not None
        for each in found.access
        if isinstance(each.round_trip_seconds, Known)
    }

    def covers(a: str, b: str) -> bool:
        if a not in placed or b not in placed:
            return False
        apart = sites[a] is None or sites[a] != sites[b]
        return (sites[a], sites[b]) in pairs or (apart and placed[a] and placed[b])

    return covers


def _is_stale(link: LinkCapacity, bound: float) -> bool:
    return any(
        isinstance(reading, Known) and reading.age_seconds > bound
        for reading in (link.round_trip_seconds, link.bandwidth_bytes_per_second)
    )


def _estimates(sites: Mapping[str, str | None], links: tuple[LinkCapacity, ...], seed: int) -> Estimates:
    """Round trips, then bandwidths, then both as values."""
    where = _where(sites)
    trips, bands = (
        _measured(where, links, name) for name in ("round_trip_seconds", "bandwidth_bytes_per_second")
    )
    both_ways = _paths(where, trips, directed=False)
    positions, base = None, np.zeros(len(trips.ages))
    if len(base) and _needs_positions(where, both_ways):
        a, b = trips.samples.a, trips.samples.b
        positions = embed(where.places, a, b, trips.samples.values, np.random.default_rng(seed)).positions
        base = np.linalg.norm(positions[a] - positions[b], axis=1)
    last_miles, lengths = fit_round_trips(trips.samples, both_ways.of, base, len(sites))
    one_way = _paths(where, bands, directed=True)
    upload, download, carried = fit_bandwidths(bands.samples, one_way.of, len(sites))
    return Estimates(
        links,
        tuple(_site_links(where, both_ways, lengths, one_way, carried, upload, download)),
        tuple(_access(where, trips, bands, last_miles, upload, download, positions)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Where:
    """Nodes as numbers. A place is a site, or past those a node without one; ``members`` [sites] counts nodes."""

    names: tuple[str, ...]
    index: Mapping[str, int]
    sites: tuple[str, ...]
    places: Ints
    members: Ints


def _where(given: Mapping[str, str | None]) -> _Where:
    sites = tuple(sorted({site for site in given.values() if site is not None}))
    number = {site: i for i, site in enumerate(sites)}
    past = iter(range(len(sites), len(sites) + len(given)))
    places = np.array(
        [next(past) if site is None else number[site] for site in given.values()], dtype=np.int64
    )
    members = np.bincount(places, minlength=len(sites))[: len(sites)].astype(np.int64)
    return _Where(tuple(given), {name: i for i, name in enumerate(given)}, sites, places, members)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Readings of one kind, and ``ages`` [samples] in seconds."""

    samples: Samples
    ages: Floats


def _measured(where: _Where, links: Sequence[LinkCapacity], name: str) -> _Measured:
    found = [
        (where.index[link.from_node], where.index[link.to_node], reading.value, reading.age_seconds)
        for link in links
        if isinstance(reading := getattr(link, name), Known) and reading.value > 0
    ]
    a, b, values, ages = np.array(found, dtype=np.float64).reshape(-1, 4).T
    return _Measured(Samples(a.astype(np.int64), b.astype(np.int64), values), ages)


@dataclass(frozen=True, slots=True, eq=False)
class _Paths:
    """Pairs of sites with enough samples.

    Attributes:
        of: [samples] the path of each; -1 where its sites have too few, or an end has none.
        at: ``(site, site)`` of each path to its number.
        counts: [paths] samples.
        ages: [paths] seconds of the oldest.
    """

    of: Ints
    at: Mapping[tuple[int, int], int]
    counts: Ints
    ages: Floats


def _paths(where: _Where, measured: _Measured, directed: bool) -> _Paths:
    """Bandwidths go one way, and one sample says that the way is there; round trips go both ways alike."""
    count = len(where.sites)
    a, b = where.places[measured.samples.a], where.places[measured.samples.b]
    if not directed:
        a, b = np.minimum(a, b), np.maximum(a, b)
    sited = (a < count) & (b < count)
    keys, of_sited, counts = np.unique(
        a[sited] * max(count, 1) + b[sited], return_inverse=True, return_counts=True
    )
    first, second = keys // max(count, 1), keys % max(count, 1)
    pairs = where.members[first] * where.members[second]
    pairs = np.where(first == second, where.members[first] * (where.members[first] - 1) // 2, pairs)
    enough = counts >= (1 if directed else np.minimum(MIN_SAMPLES, pairs))
    number = np.where(enough, np.cumsum(enough) - 1, -1)
    of = np.full(len(a), -1, dtype=np.int64)
    of[sited] = number[of_sited]
    ages = np.zeros(int(enough.sum()))
    np.maximum.at(ages, of[of >= 0], measured.ages[of >= 0])
    at = {(int(x), int(y)): i for i, (x, y) in enumerate(zip(first[enough], second[enough], strict=True))}
    return _Paths(of, at, counts[enough], ages)


def _needs_positions(where: _Where, both_ways: _Paths) -> bool:
    sites, alone = len(where.sites), int(np.count_nonzero(where.members == 1))
    return bool(where.places.max() >= sites) or len(both_ways.at) < sites * (sites + 1) // 2 - alone


def _site_links(
    where: _Where,
    both_ways: _Paths,
    lengths: Floats,
    one_way: _Paths,
    carried: Floats,
    upload: Floats,
    download: Floats,
) -> Iterator[SiteLink]:
    """One per ordered pair of sites that has samples enough of both kinds."""
    count = len(where.sites)
    most_up, most_down = np.zeros(count), np.zeros(count)
    for most, ends in ((most_up, upload), (most_down, download)):
        known = (where.places < count) & ~np.isnan(ends)
        np.maximum.at(most, where.places[known], ends[known])
    for (a, b), way in one_way.at.items():
        path = both_ways.at.get((min(a, b), max(a, b)))
        if path is None:
            continue
        # Where nothing was seen of the path's limit, the access of the ends is the limit of every link.
        limit = float(carried[way]) if np.isfinite(carried[way]) else float(min(most_up[a], most_down[b]))
        yield SiteLink(
            from_site=where.sites[a],
            to_site=where.sites[b],
            round_trip_seconds=_known(
                lengths[path], both_ways.ages[path], f"{both_ways.counts[path]} links between the sites"
            ),
            bandwidth_bytes_per_second=_known(
                limit, one_way.ages[way], f"{one_way.counts[way]} links between the sites"
            ),
        )


def _access(
    where: _Where,
    trips: _Measured,
    bands: _Measured,
    last_miles: Floats,
    upload: Floats,
    download: Floats,
    positions: Floats | None,
) -> Iterator[NodeAccess]:
    """One per node, in the order given."""
    nodes = len(where.names)
    a, b = trips.samples.a, trips.samples.b
    either = np.bincount(a, minlength=nodes) + np.bincount(b, minlength=nodes)
    out, back = (np.bincount(end, minlength=nodes) for end in (bands.samples.a, bands.samples.b))
    ages = np.zeros(nodes)
    for measured in (trips, bands):
        for end in (measured.samples.a, measured.samples.b):
            np.maximum.at(ages, end, measured.ages)
    of_place = np.bincount(where.places[a], minlength=nodes + len(where.sites))
    of_place += np.bincount(where.places[b], minlength=nodes + len(where.sites))
    for i, name in enumerate(where.names):
        if min(either[i], out[i], back[i]) < MIN_SAMPLES:
            few = Unknown(
                unknown=f"too few links measured: {out[i]} from and {back[i]} to the node, {either[i]} round trips; "
                f"at least {MIN_SAMPLES} of each"
            )
            yield NodeAccess(node=name, round_trip_seconds=few, upload_bytes_per_second=few, download_bytes_per_second=few)  # fmt: skip
            continue
        placed = positions is not None and of_place[where.places[i]] >= MIN_POSITION_SAMPLES
        yield NodeAccess(
            node=name,
            round_trip_seconds=_known(last_miles[i], ages[i], f"{either[i]} links of the node"),
            upload_bytes_per_second=_known(upload[i], ages[i], f"{out[i]} links from the node"),
            download_bytes_per_second=_known(download[i], ages[i], f"{back[i]} links to the node"),
            position_seconds=tuple(map(float, positions[i])) if positions is not None and placed else None,
        )


def _known(value: float, age: float, rests_on: str) -> Known:
    return Known(value=float(value), age_seconds=float(age), source=f"estimate: {rests_on}")
