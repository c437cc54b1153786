"""The simulation of links: the same every time, and estimates no worse than a generous bound."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.instances import Shape, question_of
from benchmarks.link_simulation import by_medians, errors, matrices_of, measured_links, probing
from benchmarks.topologies import topology
from splitinfer.profiler.link_estimates import estimate


def test_a_topology_is_its_seed() -> None:
    """The same truth again, another of another seed; edge-like: links of 0.2 to 100 ms and 10 Mbit/s to 10 Gbit/s."""
    one, again, other = topology(60, 6, 1), topology(60, 6, 1), topology(60, 6, 2)
    assert np.array_equal(one.round_trips, again.round_trips)
    assert np.array_equal(one.bandwidths, again.bandwidths)
    assert not np.array_equal(one.round_trips, other.round_trips)
    apart = ~np.eye(60, dtype=np.bool_)
    assert 1e-4 < one.round_trips[apart].min() < 1e-2 < one.round_trips[apart].max() < 0.13
    assert one.bandwidths[apart].min() >= 1.25e6
    assert one.bandwidths[apart].max() <= 1.25e9
    assert (one.bandwidths != one.bandwidths.T).any(), "some nodes have less upload"
    assert len(set(one.sites)) == 6


@pytest.mark.parametrize("known", [True, False])
def test_estimates_of_unprobed_pairs_are_within_a_generous_bound(known: bool) -> None:
    """Of 200 nodes at 12 sites a ninth of the pairs is probed; with sites the rest is close, and no pair without value."""
    truth = topology(200, 12, 0)
    pairs = probing(truth, known, 22)
    assert len(pairs.a) == 200 * 22
    assert pairs.rounds == 22, "a link per round and node, none of them twice"
    assert pairs.busiest[0] <= 3 * 22
    links = measured_links(truth, pairs, 0)
    sites = {name: site if known else None for name, site in zip(truth.names, truth.sites, strict=True)}
    question = question_of(Shape(8, 200))
    _, trips, bands = matrices_of(truth, known, estimate(sites, links), question)
    found = errors(truth, pairs, trips, bands)
    assert found is not None
    assert found.unknown == 0
    assert found.round_trip[0] < (0.1 if known else 0.3)
    assert found.bandwidth[0] < 0.15
    if known:
        assert found.round_trip[1] < 0.4
        assert found.bandwidth[1] < 0.5
        _, trips, bands = matrices_of(truth, known, by_medians(truth, links), question)
        simple = errors(truth, pairs, trips, bands)
        assert simple is not None
        assert found.round_trip[0] < simple.round_trip[0]
        assert found.bandwidth[0] < simple.bandwidth[0] / 3, "access is what bandwidth hangs on"
