"""Which links a node probes: whole coverage where it fits, a good sample where it does not, and nobody crowded."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.profiler.link_schedule import SITE_SAMPLES, Peer, peers_to_probe, sample


def network(nodes: int, sites: int | None) -> dict[str, Peer]:
    """Node i is at site ``i % sites``."""
    return {f"n{i:04d}": Peer(f"h{i}:1", None if sites is None else f"s{i % sites}") for i in range(nodes)}


def run(node: str, peers: dict[str, Peer], budgets: list[int], keep: int) -> list[tuple[str, ...]]:
    """What a node probes, round by round of ten seconds."""
    at: dict[str, int] = {}
    probed = []
    for number, most in enumerate(budgets):
        ages = {peer: 10.0 * (number - when) for peer, when in at.items()}
        probed.append(peers_to_probe(node, peers, ages, number, most, keep))
        at |= dict.fromkeys(probed[-1], number)
    return probed


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.integers(2, 30),
    keep=st.integers(1, 40),
    budgets=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    sites=st.sampled_from([None, 1, 3]),
)
def test_a_link_waits_for_the_rest_of_the_sample_and_no_longer(
    nodes: int, keep: int, budgets: list[int], sites: int | None
) -> None:
    """However the budget falls: within it, and between two probes of a link nothing is probed twice."""
    peers = network(nodes, sites)
    wheel = sample("n0000", peers, keep)
    rounds = run("n0000", peers, budgets, keep)
    assert all(len(names) == min(most, len(wheel)) for names, most in zip(rounds, budgets, strict=True))
    probed = [name for names in rounds for name in names]
    assert set(probed) <= set(wheel)
    if len(probed) >= len(wheel):
        assert set(probed) == set(wheel)
    last: dict[str, int] = {}
    for at, name in enumerate(probed):
        if name in last:
            assert at - last[name] >= len(wheel) - max(budgets)
            assert at - last[name] <= len(wheel) + max(budgets), "those of one round are alike"
        last[name] = at
    if nodes - 1 <= keep:
        assert set(wheel) == set(peers) - {"n0000"}, "few nodes: every pair"


def test_who_never_answers_does_not_get_every_turn_and_live_traffic_needs_none() -> None:
    """What counts is when a peer was last asked or heard, not whether there is a reading."""
    peers = network(4, None)
    assert peers_to_probe("n0000", peers, {"n0001": 0.0, "n0002": 50.0, "n0003": 20.0}, 0, 1, 9) == ("n0002",)
    assert peers_to_probe("n0000", peers, {"n0001": 90.0, "n0002": 0.0, "n0003": 20.0}, 1, 1, 9) == ("n0001",)
    assert peers_to_probe("n0000", peers, {"n0001": 90.0, "n0002": 0.0}, 2, 1, 9) == ("n0003",), "never asked"


@pytest.mark.parametrize("nodes", [2, 7, 12, 20])
def test_few_nodes_that_start_together_do_not_probe_one_node_together(nodes: int) -> None:
    """In each round every node is probed by ``most`` others: the wheels are shifted against each other."""
    peers = network(nodes, 2)
    rounds = ceil((nodes - 1) / 2)
    by_node = {node: run(node, peers, [2] * rounds, 22) for node in peers}
    for number in range(rounds - 1):  # the last round may have one place less
        assert set(Counter(n for names in by_node.values() for n in names[number]).values()) == {2}


@pytest.fixture(scope="module")
def samples() -> dict[str, tuple[str, ...]]:
    """Of 400 nodes at 20 sites, 22 links each."""
    peers = network(400, 20)
    return {node: sample(node, peers, 22) for node in peers}


def test_every_pair_of_sites_is_sampled_both_ways(samples: dict[str, tuple[str, ...]]) -> None:
    """Also a site with itself, from as many nodes as samples where the site has them."""
    site = {name: peer.site for name, peer in network(400, 20).items()}
    probing: dict[tuple[str | None, str | None], set[str]] = {}
    for node, names in samples.items():
        assert len(set(names)) == len(names) == 22
        assert node not in names
        for name in names:
            probing.setdefault((site[node], site[name]), set()).add(node)
    assert len(probing) == 20 * 20
    assert min(map(len, probing.values())) >= SITE_SAMPLES


def test_nobody_is_probed_by_everyone(samples: dict[str, tuple[str, ...]]) -> None:
    """400 nodes with 22 links each: the most probed has less than three times the mean, and the least is probed."""
    load = Counter(name for names in samples.values() for name in names)
    assert sum(load.values()) == 400 * 22
    assert len(load) == 400
    assert max(load.values()) <= 3 * 22
    first = Counter(names[0] for names in samples.values())
    assert max(first.values()) <= 10, "in one round"


def test_a_site_of_one_node_is_not_drowned() -> None:
    """A node alone at its site would be probed by each other site thrice: it bears its share, and so do its probes."""
    peers = {**network(300, 30), "lone": Peer("h:1", "s-lone")}
    load = Counter(name for node in peers for name in sample(node, peers, 22))
    assert load["lone"] <= 3 * 22
    assert len(sample("lone", peers, 22)) == 22


def test_more_sites_than_the_budget_bears_lose_pairs_evenly() -> None:
    """200 sites of two nodes: no site is left out, none takes what others need."""
    peers = network(400, 200)
    load = Counter(peers[name].site for node in peers for name in sample(node, peers, 11))
    assert len(load) == 200
    assert max(load.values()) <= 4 * 2 * 11


def test_the_schedule_is_the_same_for_everybody_and_every_time() -> None:
    """It hangs on names and sites alone, not on the order of the targets or on who runs it."""
    peers = network(100, 5)
    backwards = dict(reversed(peers.items()))
    for node in ("n0000", "n0042"):
        assert sample(node, peers, 10) == sample(node, backwards, 10)
        assert sample(node, peers, 10) != sample("n0001", peers, 10)


def test_a_node_that_comes_changes_few_pairs() -> None:
    """What is measured stays measured: of the pairs of 200 nodes nine tenths stay."""
    peers = network(200, 10)
    more = {**peers, "n9999": Peer("h:1", "s3")}
    kept = sum(len({*sample(n, peers, 22)} & {*sample(n, more, 22)}) for n in peers)
    assert kept >= 0.9 * 200 * 22


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (50, 1)])
def test_no_budget_probes_nothing_and_too_much_of_one_no_more_than_there_is(most: int, expected: int) -> None:
    """Both ends of ``most``."""
    assert len(peers_to_probe("n0000", network(2, None), {}, 0, most, 9)) == expected
    assert peers_to_probe("n0000", {}, {}, 0, 5, 9) == ()


@pytest.mark.parametrize("name", ["round_number", "most", "keep"])
def test_what_makes_no_sense_is_refused_by_name(name: str) -> None:
    """By the argument's name."""
    given_ = {"round_number": 0, "most": 1, "keep": 12, name: -1}
    with pytest.raises(ValueError, match=name):
        peers_to_probe("n0000", network(3, None), {}, **given_)
