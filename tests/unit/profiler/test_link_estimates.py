"""From measured links to all of them: exact where the world is as the model says, unknown where nobody looked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.example import tiny_question
from splitinfer.optimizer.links import link_matrices
from splitinfer.optimizer.question import Question
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler.link_estimates import MIN_SAMPLES, Estimates, covered, estimate

Pair = tuple[str, str]


def link(pair: Pair, trip: float = 0.01, band: float = 1e8, age: float = 0.0) -> LinkCapacity:
    """A measured link."""
    return LinkCapacity(
        from_node=pair[0],
        to_node=pair[1],
        round_trip_seconds=Known(value=trip, age_seconds=age, source="probe"),
        bandwidth_bytes_per_second=Known(value=band, age_seconds=age, source="probe"),
    )


def matrices(
    sites: Mapping[str, str | None], found: Estimates
) -> tuple[dict[Pair, float], dict[Pair, float]]:
    """Round trips and bandwidths as the optimizer reads them, by pair; what it would not use is left out."""
    nodes = tuple(NodeCapacity(name=name, site=site) for name, site in sites.items())
    snapshot = CapacitySnapshot(
        nodes=nodes, links=found.links, site_links=found.site_links, access=found.access
    )
    trips, bands, _ = link_matrices(Question(tiny_question().graph, snapshot), list(nodes))
    usable = [(i, j) for i in range(len(nodes)) for j in range(len(nodes)) if i != j and bands[i, j] > 0]
    names = list(sites)
    return tuple({(names[i], names[j]): float(a[i, j]) for i, j in usable} for a in (trips, bands))  # type: ignore[return-value]


class World:
    """Three sites of six nodes, in which the model of estimates is the truth."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.sites = {f"n{i}": "xyz"[i % 3] for i in range(18)}
        names = list(self.sites)
        self.last_mile = dict(zip(names, rng.uniform(0, 0.01, 18), strict=True))
        self.up = dict(zip(names, 10 ** rng.uniform(6, 9, 18), strict=True))
        self.down = dict(zip(names, 10 ** rng.uniform(6, 9, 18), strict=True))
        self.core = {
            pair: rng.uniform(0.005, 0.08) for pair in itertools.combinations_with_replacement("xyz", 2)
        }

    def trip(self, a: str, b: str) -> float:
        """Seconds."""
        low, high = sorted((self.sites[a], self.sites[b]))
        return float(self.core[low, high] + self.last_mile[a] + self.last_mile[b])

    def band(self, a: str, b: str) -> float:
        """Bytes per second."""
        return float(min(self.up[a], self.down[b]))

    def links(self, pairs: Iterable[Pair]) -> list[LinkCapacity]:
        """Measured without noise."""
        return [link(pair, self.trip(*pair), self.band(*pair)) for pair in pairs]

    def some(self, seed: int) -> list[Pair]:
        """Half of the pairs."""
        pairs = list(itertools.permutations(self.sites, 2))
        chosen = np.random.default_rng(seed).permutation(len(pairs))[: len(pairs) // 2]
        return [pairs[i] for i in sorted(chosen)]


@pytest.mark.parametrize("seed", range(3))
def test_a_world_that_is_as_the_model_says_is_found_again(seed: int) -> None:
    """From half of the pairs the others: within 2% but for few, in seconds and in bytes per second, each way its own."""
    world = World(seed)
    known = world.some(seed)
    trips, bands = matrices(world.sites, estimate(world.sites, world.links(known)))
    rest = [pair for pair in itertools.permutations(world.sites, 2) if pair not in set(known)]
    off_trip = [abs(trips[pair] / world.trip(*pair) - 1) for pair in rest]
    off_band = [abs(bands[pair] / world.band(*pair) - 1) for pair in rest]
    assert np.quantile(off_trip, 0.9) < 0.02
    assert np.quantile(off_band, 0.75) < 0.02
    assert np.median(off_band) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_measured_pairs_stay_as_they_were_measured(seed: int) -> None:
    """Whatever the others say of them, also where they are unknown."""
    world = World(seed)
    known = world.some(seed)
    odd, dead = link(known[0], 0.7, 123.0), LinkCapacity(from_node=known[1][0], to_node=known[1][1])
    found = estimate(world.sites, [odd, dead, *world.links(known[2:])])
    trips, bands = matrices(world.sites, found)
    assert (trips[known[0]], bands[known[0]]) == (0.7, 123.0)
    assert known[1] not in bands
    assert found.links == (odd, dead, *world.links(known[2:]))


def test_a_path_narrower_than_both_ends_limits_what_takes_it() -> None:
    """Seen on some links between two sites in one direction, believed of the others, and of no other direction."""
    world = World(0)
    world.up = dict.fromkeys(world.sites, 1e9)
    world.down = dict.fromkeys(world.sites, 1e9)
    known = world.some(1)
    links = [
        link(
            pair,
            world.trip(*pair),
            1e6 if (world.sites[pair[0]], world.sites[pair[1]]) == ("x", "y") else 1e9,
        )
        for pair in known
    ]
    _, bands = matrices(world.sites, estimate(world.sites, links))
    for (a, b), band in bands.items():
        assert band == (1e6 if (world.sites[a], world.sites[b]) == ("x", "y") else 1e9), (a, b)


def test_sites_that_nobody_looked_between_stay_unknown() -> None:
    """No link of z was measured: no pair of its nodes has a value, and each of them says why."""
    world = World(0)
    known = [pair for pair in world.some(2) if "z" not in (world.sites[pair[0]], world.sites[pair[1]])]
    found = estimate(world.sites, world.links(known))
    _, bands = matrices(world.sites, found)
    assert not [pair for pair in bands if "z" in (world.sites[pair[0]], world.sites[pair[1]])]
    assert not [each for each in found.site_links if "z" in (each.from_site, each.to_site)]
    for each in found.access:
        if world.sites[each.node] == "z":
            assert each.round_trip_seconds == Unknown(
                unknown="too few links measured: 0 from and 0 to the node, 0 round trips; at least 3 of each"
            )
            assert isinstance(each.upload_bytes_per_second, Unknown)


def test_inside_a_site_that_nobody_looked_into_nothing_is_made_up() -> None:
    """Its nodes are at one position, and a round trip of next to nothing would be read into that."""
    world = World(0)
    known = [pair for pair in world.some(2) if {world.sites[name] for name in pair} != {"z"}]
    trips, _ = matrices(world.sites, estimate(world.sites, world.links(known)))
    inside = [pair for pair in trips if {world.sites[name] for name in pair} == {"z"}]
    assert inside == []


def test_positions_stand_in_where_two_sites_have_too_few_links() -> None:
    """No link between x and y: both are placed by their links to z and to themselves, and no sites' reading is made."""
    world = World(0)
    known = [pair for pair in world.some(2) if {world.sites[name] for name in pair} != {"x", "y"}]
    found = estimate(world.sites, world.links(known))
    assert ("x", "y") not in {(each.from_site, each.to_site) for each in found.site_links}
    assert all(each.position_seconds is not None for each in found.access)
    trips, _ = matrices(world.sites, found)
    between = [pair for pair in trips if {world.sites[name] for name in pair} == {"x", "y"}]
    assert len(between) == 2 * 6 * 6
    z = {
        name: min(trips[name, other] for other in world.sites if world.sites[other] == "z" and other != name)
        for name in world.sites
    }
    for a, b in between:
        assert trips[a, b] <= 2 * (z[a] + z[b] + 0.02), "about a triangle with z"


def test_nodes_without_sites_are_placed_by_their_links() -> None:
    """No site is named: no sites' readings, a position for each node, a value for every pair."""
    world = World(1)
    found = estimate(dict.fromkeys(world.sites), world.links(world.some(3)))
    assert found.site_links == ()
    trips, bands = matrices(dict.fromkeys(world.sites), found)
    assert len(bands) == 18 * 17
    off = [abs(trips[pair] / world.trip(*pair) - 1) for pair in trips]
    assert np.median(off) < 0.15


def test_estimates_say_that_they_are_and_are_as_old_as_what_they_rest_on() -> None:
    """Source and age of every value that was not measured."""
    world = World(0)
    known = world.some(0)
    links = [link(pair, world.trip(*pair), world.band(*pair), age=float(i)) for i, pair in enumerate(known)]
    found = estimate(world.sites, links)
    readings = [
        reading
        for each in (*found.site_links, *found.access)
        for name in ("round_trip_seconds", "bandwidth_bytes_per_second", "upload_bytes_per_second")
        if isinstance(reading := getattr(each, name, None), Known)
    ]
    assert readings
    assert all(reading.source.startswith("estimate: ") for reading in readings)
    by_site = {(each.from_site, each.to_site): each for each in found.site_links}
    forth = [i for i, (a, b) in enumerate(known) if (world.sites[a], world.sites[b]) == ("x", "y")]
    back = [i for i, (a, b) in enumerate(known) if (world.sites[a], world.sites[b]) == ("y", "x")]
    trip, band = by_site["x", "y"].round_trip_seconds, by_site["x", "y"].bandwidth_bytes_per_second
    assert isinstance(trip, Known)
    assert isinstance(band, Known)
    assert (trip.age_seconds, trip.source) == (
        max(forth + back),
        f"estimate: {len(forth + back)} links between the sites",
    )
    assert (band.age_seconds, band.source) == (max(forth), f"estimate: {len(forth)} links between the sites")
    own = [i for i, pair in enumerate(known) if "n0" in pair]
    access = next(each for each in found.access if each.node == "n0")
    assert isinstance(access.upload_bytes_per_second, Known)
    assert access.upload_bytes_per_second.age_seconds == max(own)


def test_stale_links_are_as_good_as_none() -> None:
    """They are left out and estimated again, and nothing rests on them."""
    world = World(0)
    known = world.some(0)
    old = [
        link(pair, 5.0, 1.0, age=700.0)
        for pair in itertools.permutations(world.sites, 2)
        if pair not in set(known)
    ]
    fresh = world.links(known)
    assert estimate(world.sites, [*fresh, *old], stale_after_seconds=600.0) == estimate(world.sites, fresh)


def test_where_every_pair_is_measured_there_is_nothing_to_estimate() -> None:
    """Few nodes: the snapshot is what was measured."""
    world = World(0)
    links = world.links(itertools.permutations(world.sites, 2))
    assert estimate(world.sites, links) == Estimates(tuple(links))


@settings(max_examples=60, deadline=None)
@given(
    sites=st.lists(st.sampled_from([None, "x", "y"]), min_size=1, max_size=7),
    data=st.data(),
)
def test_any_links_give_a_snapshot_that_has_nothing_from_nothing(
    sites: list[str | None], data: st.DataObject
) -> None:
    """Whatever was measured or not, with zeros and unknowns in it: a valid snapshot, the same each time; a node with too few links has no estimate."""
    named = {f"n{i}": site for i, site in enumerate(sites)}
    pairs = list(itertools.permutations(named, 2))
    value = st.one_of(st.just(Unknown(unknown="cut")), st.floats(1e-4, 1e9).map(lambda v: Known(value=v)))
    links = [
        LinkCapacity(
            from_node=a,
            to_node=b,
            round_trip_seconds=data.draw(value),
            bandwidth_bytes_per_second=data.draw(value),
        )
        for a, b in (data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else [])
    ]
    found = estimate(named, links)
    assert found == estimate(named, links)
    _, bands = matrices(named, found)
    given_pairs = {(each.from_node, each.to_node) for each in links}
    seen: dict[str, int] = dict.fromkeys(named, 0)
    for each in links:
        if isinstance(each.bandwidth_bytes_per_second, Known):
            seen[each.from_node] += 1
            seen[each.to_node] += 1
    for a, b in set(bands) - given_pairs:
        assert min(seen[a], seen[b]) >= MIN_SAMPLES


def test_links_of_strangers_are_refused() -> None:
    """By name."""
    with pytest.raises(ValueError, match="no node 'z'"):
        estimate({"a": None, "b": None}, [link(("a", "z"))])


@pytest.mark.parametrize("named", [True, False])
def test_what_is_covered_is_what_the_optimizer_would_use(named: bool) -> None:
    """The same answer as the matrices give, pair by pair, with a site that nobody looked into."""
    world = World(0)
    known = [pair for pair in world.some(2) if {world.sites[name] for name in pair} != {"z"}]
    sites = world.sites if named else dict.fromkeys(world.sites)
    found = estimate(sites, world.links(known))
    covers = covered(found, sites)
    _, bands = matrices(sites, found)
    rest = set(itertools.permutations(sites, 2)) - set(known)
    assert {pair for pair in rest if covers(*pair)} == set(bands) & rest
