"""Network coordinates: where nodes are, from the round trips between some of them. Pure.

Vivaldi with height vectors (Dabek, Cox, Kaashoek and Morris, SIGCOMM 2004): a round trip is the distance of two positions and
the heights of both ends, a height being the last mile. Vivaldi moves each node by its own samples, one by one. Here all
samples are in one place, so all springs pull at once, with steps that shrink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.access import POSITION_DIMENSIONS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDS = 300
FIRST_STEP, LAST_STEP = 0.5, 0.02
"""Part of the mean pull by which a node moves, falling geometrically: large steps untangle, small ones settle."""
SOFT = 0.05
"""A sample that is off by less than this part of itself pulls no harder the closer it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """``positions`` [n, 3] and ``heights`` [n], in seconds."""

    positions: Floats
    heights: Floats

    def round_trips(self, a: Ints, b: Ints) -> Floats:
        """Seconds between the nodes ``a[i]`` and ``b[i]``."""
        apart: Floats = np.linalg.norm(self.positions[a] - self.positions[b], axis=1)
        return apart + self.heights[a] + self.heights[b]


def embed(places: Ints, a: Ints, b: Ints, round_trips: Floats, rng: np.random.Generator) -> Coordinates:
    """Coordinates of n nodes from samples ``round_trips[i]`` (seconds, positive) between the nodes ``a[i]`` and ``b[i]``.

    Springs are weighted by how far off they are, relative to the sample: what is minimised is about the mean relative
    error without squares, which a few paths with a detour do not bend. A place without a sample stays where chance put it.

    Args:
        places: [n], numbers from 0: nodes of one place (a site) share a position, and each has a height of its own.
        a: [samples] one end.
        b: [samples] the other.
        round_trips: [samples].
        rng: draws where places begin.
    """
    nodes, count = len(places), int(places.max()) + 1
    scale = float(np.median(round_trips)) if len(round_trips) else 0.0
    positions = rng.normal(0.0, scale / 2 + 1e-9, (count, POSITION_DIMENSIONS))
    heights = np.full(nodes, scale / 20)
    ends, others = np.concatenate([a, b]), np.concatenate([b, a])
    samples = np.concatenate([round_trips, round_trips])
    here, there = places[ends], places[others]
    shrink = (LAST_STEP / FIRST_STEP) ** (1 / (ROUNDS - 1))
    step = FIRST_STEP
    for _ in range(ROUNDS):
        between = positions[here] - positions[there]
        apart = np.linalg.norm(between, axis=1)
        off = samples - (apart + heights[ends] + heights[others])
        weight = 1.0 / (SOFT * samples + np.abs(off))
        pull = weight * off / np.maximum(apart, 1e-9)
        total = np.bincount(here, weight, count) + 1e-12
        for axis in range(POSITION_DIMENSIONS):
            positions[:, axis] += step * np.bincount(here, pull * between[:, axis], count) / total
        heights += step * np.bincount(ends, weight * off, nodes) / (np.bincount(ends, weight, nodes) + 1e-12)
        np.maximum(heights, 0.0, out=heights)
        step *= shrink
    return Coordinates(positions[places], heights)
