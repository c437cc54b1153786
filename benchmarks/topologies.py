"""Edge networks from a seed, with the truth about every link: what probes see is this, with noise.

Sites lie in a plane. A round trip between two of them grows with the distance and with a detour of its own, so triangles are
violated; inside a site it is that of a switch. Each node adds its last mile, most of them a cable, some of them a radio
link. Bandwidth is the smallest of the sender's upload, what the path between the sites carries, and the receiver's
download. Some nodes have a fraction of their download as upload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitinfer.optimizer.cost import Floats
from splitinfer.profiler.coordinates import Ints

BYTES = 1e6 / 8  # of a megabit
WIRELESS, ASYMMETRIC = 0.2, 0.3
"""Shares of the nodes."""


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """The truth.

    Attributes:
        names: of nodes.
        sites: of each node, by name.
        round_trips: [n, n] seconds.
        bandwidths: [n, n] bytes per second, from row to column.
    """

    names: tuple[str, ...]
    sites: tuple[str, ...]
    round_trips: Floats
    bandwidths: Floats


def topology(nodes: int, sites: int, seed: int) -> Topology:
    """``nodes`` at ``sites``, every site with at least one."""
    rng = np.random.default_rng([nodes, sites, seed])
    at = np.concatenate([np.arange(sites), rng.integers(0, sites, nodes - sites)])
    core_trip, core_band = _core(rng, sites)
    wireless = rng.random(nodes) < WIRELESS
    last_mile = np.where(wireless, rng.uniform(2e-3, 10e-3, nodes), rng.uniform(2e-5, 3e-4, nodes))
    down = BYTES * 10 ** rng.uniform(1, 4, nodes)
    up = np.where(rng.random(nodes) < ASYMMETRIC, down / rng.uniform(3, 10, nodes), down)
    up = np.maximum(up, 10 * BYTES)
    pair = _symmetric(rng.lognormal(0, 0.05, (nodes, nodes)))
    trips = (core_trip[np.ix_(at, at)] + last_mile[:, None] + last_mile[None, :]) * pair
    bands = np.minimum(core_band[np.ix_(at, at)], np.minimum.outer(up, down))
    return Topology(tuple(f"node-{i}" for i in range(nodes)), tuple(f"site-{i}" for i in at), trips, bands)


def _core(rng: np.random.Generator, sites: int) -> tuple[Floats, Floats]:
    """Round trips and bandwidths between sites, and inside each on the diagonal."""
    place = rng.uniform(0, 1, (sites, 2))
    distance = np.linalg.norm(place[:, None] - place[None, :], axis=2)
    detour = _symmetric(rng.lognormal(0.1, 0.2, (sites, sites)))
    trips = np.clip(5e-3 + 50e-3 * distance * detour, 5e-3, 80e-3)
    np.fill_diagonal(trips, rng.uniform(0.2e-3, 2e-3, sites))
    bands = BYTES * 10 ** rng.uniform(2, 4, (sites, sites))
    np.fill_diagonal(bands, BYTES * 1e4)
    return trips, bands


def _symmetric(a: Floats) -> Floats:
    upper = np.triu(a, 1)
    result: Floats = upper + upper.T + np.diag(np.diag(a))
    return result


def probed(truth: Topology, a: Ints, b: Ints, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """What probes of the links ``a[i]`` to ``b[i]`` find: round trips with jitter, bandwidths that something disturbed."""
    trips = truth.round_trips[a, b] * rng.lognormal(0, 0.05, len(a)) + rng.exponential(5e-5, len(a))
    return trips, truth.bandwidths[a, b] * np.minimum(1.0, rng.lognormal(-0.05, 0.1, len(a)))
