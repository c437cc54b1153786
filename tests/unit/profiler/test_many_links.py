"""From what agents export of a few links to a snapshot that has a value for the others, or the reason why not."""

from __future__ import annotations

import itertools

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.links import link_matrices
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.inventory import Entry, Inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.sources import Gathered
from tests.support.agent_values import DTYPE, MODEL, Values, link_values, node_values, samples

NAMES = tuple("abcdef")
SITES = Inventory(nodes={name: Entry(site="xy"[i // 3]) for i, name in enumerate(NAMES)})
MISSING = ("a", "f")


def taken(extra: Values) -> CapacitySnapshot:
    """Of two sites of three nodes; every link is measured but that from a to f, of which ``extra`` may say something."""
    said: dict[str, Values] = {name: node_values() for name in NAMES}
    for pair in itertools.permutations(NAMES, 2):
        if pair != MISSING:
            said[pair[0]] = said[pair[0]] | link_values(pair[1])
    said["a"] = said["a"] | extra
    every = tuple(sample for name in NAMES for sample in samples(name, said[name]))
    return assemble(Gathered(every, 110.0), Asked(MODEL, DTYPE), SITES, StaleBounds())


def usable(snapshot: CapacitySnapshot) -> bool:
    """Whether the optimizer would send from a to f."""
    _, bands, _ = link_matrices(Question(tiny_question().graph, snapshot), list(snapshot.nodes))
    return bool(bands[NAMES.index("a"), NAMES.index("f")] > 0)


def said_of_missing(snapshot: CapacitySnapshot) -> list[str]:
    """Why the link itself is unknown, where the snapshot has it."""
    return [
        reading.unknown
        for link in snapshot.links
        if (link.from_node, link.to_node) == MISSING
        and isinstance(reading := link.round_trip_seconds, Unknown)
    ]


def test_a_link_that_nobody_probed_is_estimated_by_its_sites() -> None:
    """It is no link of the snapshot; its sites and its ends speak for it, and say that they estimate."""
    snapshot = taken({})
    assert usable(snapshot)
    assert len(snapshot.links) == 6 * 5 - 1
    trip = next(
        each for each in snapshot.site_links if (each.from_site, each.to_site) == ("x", "y")
    ).round_trip_seconds
    assert isinstance(trip, Known)
    assert trip.source == "estimate: 17 links between the sites"
    assert {each.node for each in snapshot.access} == set(NAMES)


def test_a_link_that_was_probed_in_vain_is_not_estimated() -> None:
    """Its age is there and nothing else: nobody answered, whatever other links between the sites are like."""
    snapshot = taken({key: value for key, value in link_values("f").items() if key[0] == s.LINK_AGE})
    assert said_of_missing(snapshot) == ["it was probed in vain"]
    assert not usable(snapshot)


def test_a_link_that_nobody_measures_any_more_is_estimated_again() -> None:
    """Stale readings are as good as none where there is an estimate."""
    old = link_values("f") | {(s.LINK_AGE, ("f",)): 1e4}
    snapshot = taken(old)
    assert said_of_missing(snapshot) == []
    assert usable(snapshot)


def test_a_stale_link_without_an_estimate_says_that_it_is_stale() -> None:
    """Two nodes: there is nothing that it could be told from."""
    old = link_values("b") | {(s.LINK_AGE, ("b",)): 1e4}
    both = (*samples("a", node_values() | old), *samples("b", node_values()))
    snapshot = assemble(Gathered(both, 110.0), Asked(MODEL, DTYPE), Inventory(), StaleBounds())
    reading = snapshot.links[0].round_trip_seconds
    assert isinstance(reading, Unknown)
    assert reading.unknown.startswith("stale: ")
