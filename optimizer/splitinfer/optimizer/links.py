"""Links of a snapshot as matrices: which can be used, and why not the others.

A measured link counts as it was measured. Any other is made of the reading of the two sites, or without one of the two
positions, and of the access of both ends (`splitinfer.optimizer.access`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from splitinfer.optimizer.access import access_arrays, distances
from splitinfer.optimizer.capacity import LinkCapacity, NodeCapacity, SiteLink
from splitinfer.optimizer.cost import Floats
from splitinfer.optimizer.question import Question

LinkMatrices = Callable[[Question, list[NodeCapacity]], tuple[Floats, Floats, list[str]]]
"""What `link_matrices` is."""


def link_matrices(q: Question, nodes: list[NodeCapacity]) -> tuple[Floats, Floats, list[str]]:
    """Round trips and bandwidths ``[from, to]`` (0 bandwidth: no usable link), and the links left out, with why."""
    count = len(nodes)
    index = {node.name: i for i, node in enumerate(nodes)}
    sites = {site: i for i, site in enumerate(dict.fromkeys(node.site for node in nodes))}
    at = np.array([sites[node.site] for node in nodes], dtype=np.int64)
    site_trip = np.full((len(sites), len(sites)), np.inf)
    site_band = np.zeros((len(sites), len(sites)))
    by_site = np.zeros((len(sites), len(sites)), dtype=np.bool_)
    least, dead = q.constraints.minimum_bandwidth_bytes_per_second, []

    def read(link: LinkCapacity | SiteLink, name: str) -> tuple[float, float]:
        trip_reading, band_reading = link.round_trip_seconds, link.bandwidth_bytes_per_second
        trip, band = (q.snapshot.usable(r, q.now, "link") for r in (trip_reading, band_reading))
        if trip is None or band is None:
            unusable = trip_reading if trip is None else band_reading
            dead.append(f"{name}: unknown: {q.snapshot.why_unusable(unusable, q.now, 'link')}")
            return np.inf, 0.0
        if band < least:
            dead.append(f"{name}: {band:,.0f} B/s is below the minimum of {least:,.0f}")
            return np.inf, 0.0
        return trip, band

    for site_link in q.snapshot.site_links:
        a, b = sites.get(site_link.from_site), sites.get(site_link.to_site)
        if a is not None and b is not None:
            name = f"{site_link.from_site} to {site_link.to_site}"
            site_trip[a, b], site_band[a, b] = read(site_link, name)
            by_site[a, b] = True
    if not count:
        return np.zeros((0, 0)), np.zeros((0, 0)), dead
    trip, band, said = site_trip[np.ix_(at, at)], site_band[np.ix_(at, at)], by_site[np.ix_(at, at)]
    if q.snapshot.access:
        access = access_arrays(q, [node.name for node in nodes])
        dead += access.dead
        # Where the sites' reading was left out, that is an answer: positions speak where there is none. Of two nodes of
        # one site they do not speak: both are where the site is, and how far apart nobody knows.
        together = np.equal.outer(at, at) & (at != sites.get(None, -1))[:, None]
        apart = np.where(said | together, np.inf, distances(access.position))
        trip = np.where(said, trip, apart) + access.last_mile[:, None] + access.last_mile[None, :]
        band = np.where(np.isfinite(apart), np.inf, band)
        band = np.minimum(band, np.minimum.outer(access.upload, access.download))
        unusable = (band <= 0) | (band < least) | ~np.isfinite(band)
        narrow = int(np.count_nonzero(unusable & (band > 0) & np.isfinite(band)))
        if narrow:
            dead.append(
                f"{narrow:,} links that nobody measured: estimated below the minimum of {least:,.0f} B/s"
            )
        trip, band = np.where(unusable, np.inf, trip), np.where(unusable, 0.0, band)
    for link in q.snapshot.links:
        i, j = index.get(link.from_node), index.get(link.to_node)
        if i is not None and j is not None:
            trip[i, j], band[i, j] = read(link, f"{link.from_node} to {link.to_node}")
    return trip, band, dead
