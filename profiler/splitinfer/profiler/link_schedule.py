"""Which links a node probes next. Pure: each node decides alone, from the same targets, and nobody coordinates.

A reading is fresh for a number of rounds, so a node can keep only so many links measured: its *sample*. Where all peers fit
in, they are the sample. Else it is drawn so that estimates are good (`splitinfer.profiler.link_estimates`): first the
node's share of the pairs of sites, then peers at random, which is what network coordinates and the access bandwidth of
each node need.

Every draw is by rendezvous hashing (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 1998): all nodes that know
the same peers agree on who probes whom, the load is even but for chance, and a node that comes or goes changes few other
pairs. With S sites, n nodes, m of them at the node's own site, one call hashes about n + S m names.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

FRESH_ROUNDS = 12
"""Rounds after which a reading is stale, where nothing else is said: two minutes of rounds of ten seconds."""
SITE_SAMPLES = 3
"""Links probed between two sites, in each direction, where the budget allows."""
PAIRS_SHARE = 0.75
"""Most of a sample that goes to pairs of sites."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node whose agent answers probes.

    Attributes:
        address: host:port of its agent.
        site: of its node; None where no sites are known.
    """

    address: str
    site: str | None = None


def peers_to_probe(
    node: str,
    peers: Mapping[str, Peer],
    ages_seconds: Mapping[str, float],
    round_number: int,
    most: int,
    fresh_rounds: int = FRESH_ROUNDS,
) -> tuple[str, ...]:
    """The peers that ``node`` probes in this round, at most ``most``.

    The sample stands on a wheel that turns by ``most`` each round. A peer without a reading is probed at its turn only, so
    that one that never answers costs no more than its own turns. The turn of any other goes to the oldest reading.
    So each peer of the sample is probed once per turn of the wheel, which takes less than ``fresh_rounds``, and a
    reading that live traffic keeps young leaves its probes to others.

    Args:
        node: who asks. Its own site is that of ``peers[node]``; where it is not among them, it is taken to be alone.
        peers: all that could be probed, by name, perhaps the node itself, which it never probes.
        ages_seconds: of the readings there are, by peer.
        round_number: how many rounds there were before.
        most: links that the budget of this round allows.
        fresh_rounds: rounds after which a reading is stale.

    Raises:
        ValueError: a negative ``round_number`` or ``most``, or fewer than two ``fresh_rounds``: in one round everything
            would be stale before its turn comes again.
    """
    for name, value, least in (
        ("round_number", round_number, 0),
        ("most", most, 0),
        ("fresh_rounds", fresh_rounds, 2),
    ):
        if value < least:
            raise ValueError(f"{name}: must be at least {least}, not {value}")
    wheel = sample(node, peers, most * (fresh_rounds - 1))
    if not wheel:
        return ()
    turns = ceil(len(wheel) / most)
    begin = round_number % turns * most
    due = wheel[begin : begin + most]
    new = [name for name in due if name not in ages_seconds]
    place = {name: at for at, name in enumerate(wheel)}
    measured = (name for name in wheel if name in ages_seconds)
    # As many as are due, the oldest first; of readings of one age those that would be due next.
    oldest = heapq.nsmallest(
        len(due) - len(new),
        measured,
        key=lambda name: (-ages_seconds[name], (place[name] - begin) % len(wheel)),
    )
    return (*new, *oldest)


def sample(node: str, peers: Mapping[str, Peer], size: int) -> tuple[str, ...]:
    """The peers that ``node`` keeps measured, at most ``size``, in the order of its wheel.

    The node's share of the pairs of sites comes first, up to PAIRS_SHARE of the sample: of each other site, and of its
    own, up to SITE_SAMPLES nodes of its site probe a peer each. The rest of the sample is drawn from all peers.
    """
    names = sorted(name for name in peers if name != node)
    if size <= 0:
        return ()
    if len(names) <= size:
        start = sum(
            name < node for name in names
        )  # everybody begins behind himself: nobody is probed by all at once
        return (*names[start:], *names[:start])
    duties = sorted(_duties(node, names, peers, size), key=lambda name: _hash("duty", node, name))
    chosen = dict.fromkeys(duties[:size])
    others = (name for name in names if name not in chosen)
    chosen |= dict.fromkeys(_least(size - len(chosen), others, node))
    return tuple(sorted(chosen, key=lambda name: _hash("turn", node, name)))


def _duties(node: str, names: Iterable[str], peers: Mapping[str, Peer], size: int) -> Iterable[str]:
    """The peers that fall to the node out of its site's pairs with every site; peers without a site are in no pair.

    Two sites get as many samples as the smaller of them can bear. Where that is a fraction, chance (the same for
    everybody) says whether there is one more, so that with too many sites for the budget pairs are lost, evenly.
    """
    own = peers[node].site if node in peers else None
    sites: dict[str, list[str]] = defaultdict(list)
    for name in names:
        site = peers[name].site
        if site is not None:
            sites[site].append(name)
    members = [node, *(sites.get(own, ()) if own is not None else ())]
    for site, there in sites.items():
        smaller = min(len(members), len(there))
        bearable = PAIRS_SHARE * size * smaller / len(sites)
        chance = int.from_bytes(_hash("chance", own or node, site)) / 2**64
        samples = min(SITE_SAMPLES, int(bearable + chance))
        probing = _least(samples, members, f"probes {site}")
        if node in probing:
            # Where there are fewer members than samples, each probes more than one peer.
            share = range(probing.index(node), samples, len(probing))
            yield from _least(len(share), there, node)


def _least(count: int, names: Iterable[str], key: str) -> list[str]:
    """The ``count`` names whose hash with ``key`` is least, in that order."""
    return heapq.nsmallest(count, names, key=lambda name: _hash(key, name))


def _hash(*parts: str) -> bytes:
    return blake2b("\0".join(parts).encode(), digest_size=8).digest()
