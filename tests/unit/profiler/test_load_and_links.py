"""How much of a node is left beside others, and which pairs are links."""

from __future__ import annotations

import pytest

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.inventory import Inventory, inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.sources import Gathered
from tests.support.agent_values import DTYPE, MODEL, PROBE, Values, link_values, node_values, samples


def taken(values: Values) -> CapacitySnapshot:
    """Of node a with these values, and of a sound node b."""
    both = (*samples("a", values), *samples("b", node_values()))
    return assemble(Gathered(both, 110.0), Asked(MODEL, DTYPE), Inventory(), StaleBounds())


def load(values: Values) -> Known | Unknown:
    """Background utilisation of a."""
    return taken(values).nodes[0].background_utilisation


@pytest.mark.parametrize(
    ("runnable", "threads", "used"),
    [
        (0, 2, 0.0),
        (2, 2, 0.0),  # two of four CPUs are left, and two are wanted
        (3, 2, 3 / 7),  # each of ours takes turns with three quarters of another
        (4, 4, 0.5),
        (0, 8, 0.0),  # more threads than CPUs took turns in the probe already
        (4, 8, 0.5),
        (1e6, 1, 0.99),  # a machine that others use entirely still has a little left
    ],
)
def test_what_others_take_is_what_our_threads_lack(runnable: float, threads: float, used: float) -> None:
    """On four CPUs; the share is of the speed that the probe had."""
    reading = load(node_values(runnable=runnable, threads=threads))
    assert isinstance(reading, Known)
    assert reading.value == pytest.approx(used, abs=5e-6)


def test_without_a_probe_nobody_knows_how_many_threads_are_wanted() -> None:
    """So the load is not known either, and says so."""
    values = node_values()
    del values[s.PROBE_THREADS, PROBE]
    reading = load(values)
    assert isinstance(reading, Unknown)
    assert reading.unknown.startswith("no probe says with how many threads: ")


def test_a_node_has_no_link_to_itself_nor_to_what_is_no_node() -> None:
    """Hearsay makes no node, and no snapshot is lost for it."""
    values = node_values() | link_values("a") | link_values("b") | link_values("nobody")
    assert [(link.from_node, link.to_node) for link in taken(values).links] == [("a", "b")]


def test_the_links_of_a_node_that_two_speak_for_are_unknown() -> None:
    """As is everything else of it."""
    one = samples("a", node_values() | link_values("b"), instance="x:1")
    two = samples("a", node_values(memory=1.0) | link_values("b"), instance="y:1")
    of = Gathered((*one, *two, *samples("b", node_values())), 110.0)
    snapshot = assemble(of, Asked(MODEL, DTYPE), Inventory(), StaleBounds())
    assert all(isinstance(reading, Unknown) for _, reading in snapshot.nodes[0].readings(DTYPE))
    assert isinstance(snapshot.links[0].round_trip_seconds, Unknown)
    assert isinstance(snapshot.links[0].bandwidth_bytes_per_second, Unknown)


def many(count: int, links: int, age: float) -> CapacitySnapshot:
    """Nodes of two sites of which each probed the next ones; n0 the next one ``age`` seconds ago, the second in vain."""
    names = [f"n{i}" for i in range(count)]
    of: list[Sample] = []
    for i, name in enumerate(names):
        values = node_values()
        for step in range(1, links + 1):
            values |= link_values(names[(i + step) % count], age=age if i == 0 and step == 1 else 10.0)
        if i == 0:
            values = {key: value for key, value in values.items() if key[1] != ("n2",)}
            values[s.LINK_AGE, ("n2",)] = 10.0
        of += samples(name, values)
    sites = inventory({"nodes": {name: {"site": "ab"[i % 2]} for i, name in enumerate(names)}})
    return assemble(Gathered(tuple(of), 110.0), Asked(MODEL, DTYPE), sites, StaleBounds())


def test_what_nobody_probed_is_estimated_and_says_so() -> None:
    """By the sites and each node's access. A measured pair stays as it was, one probed in vain unknown; a stale one is estimated."""
    snapshot = many(20, 12, age=2000.0)
    pairs = {(link.from_node, link.to_node): link for link in snapshot.links}
    assert len(pairs) == 20 * 12 - 1
    assert ("n0", "n1") not in pairs
    assert pairs["n0", "n2"].round_trip_seconds == Unknown(unknown="it was probed in vain")
    assert pairs["n1", "n2"].round_trip_seconds == Known(value=1e-3, age_seconds=20, source="agent")
    assert {(link.from_site, link.to_site) for link in snapshot.site_links} == {
        (x, y) for x in "ab" for y in "ab"
    }
    assert len(snapshot.access) == 20
    for link in snapshot.site_links:
        assert isinstance(link.round_trip_seconds, Known)
        assert link.round_trip_seconds.source.startswith("estimate: ")


def test_where_too_little_was_measured_nothing_is_estimated_and_reasons_stay() -> None:
    """A stale pair says how old it is, and one probed in vain that it was."""
    snapshot = many(3, 2, age=2000.0)
    assert all(isinstance(one.round_trip_seconds, Unknown) for one in snapshot.access)
    pairs = {(link.from_node, link.to_node): link for link in snapshot.links}
    assert len(pairs) == 6
    stale = Unknown(unknown="stale: 2010 s old, at most 900 s (agent)")
    assert pairs["n0", "n1"].bandwidth_bytes_per_second == stale
    assert pairs["n0", "n1"].round_trip_seconds == stale
    assert pairs["n0", "n2"].bandwidth_bytes_per_second == Unknown(unknown="it was probed in vain")
