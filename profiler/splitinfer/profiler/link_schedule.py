"""Which links a node probes next. Pure: each node decides alone, from the same targets, and nobody coordinates.

The bytes that a node may spend while a reading is fresh keep only so many links measured: its *sample*. Where all peers fit
in, they are the sample. Else it is drawn so that estimates are good (`splitinfer.profiler.link_estimates`): first the
node's share of the pairs of sites, then peers at random, which is what network coordinates and the access bandwidth of
each node need. The sample does not change while the peers do not, whatever a round's budget: what is measured stays measured.

Every draw is by rendezvous hashing (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 1998): all nodes that know
the same peers agree on who probes whom, the load is even but for chance, and a node that comes or goes changes few other
pairs. With S sites, n nodes, m of them at the node's own site, one call hashes about n + S m names.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

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
    keep: int,
) -> tuple[str, ...]:
    """The peers that ``node`` probes in this round, at most ``most``: of its sample, those that wait longest.

    So between two probes of a link there are at most as many others as the sample has, however the budget falls.

    Args:
        node: who asks. Its own site is that of ``peers[node]``; where it is not among them, it is taken to be alone.
        peers: all that could be probed, by name, perhaps the node itself, which it never probes.
        ages_seconds: by peer, since it was last probed, answered or not (who never answers must not get every turn), or
            since live traffic last gave a reading.
        round_number: how many rounds there were before: of peers that wait alike, each round begins with others.
        most: links that the budget of this round allows.
        keep: links that the budget keeps measured (`splitinfer.profiler.link_pace`).

    Raises:
        ValueError: a negative ``round_number``, ``most`` or ``keep``.
    """
    for name, value in (("round_number", round_number), ("most", most), ("keep", keep)):
        if value < 0:
            raise ValueError(f"{name}: must be at least 0, not {value}")
    return longest_waiting(sample(node, peers, keep), ages_seconds, round_number, most)


def longest_waiting(
    wheel: Sequence[str], ages_seconds: Mapping[str, float], round_number: int, most: int
) -> tuple[str, ...]:
    """`peers_to_probe` for a sample that is known."""
    begin = round_number * most

    def waits(place: int) -> tuple[float, int]:
        return -ages_seconds.get(wheel[place], float("inf")), (place - begin) % len(wheel)

    return tuple(wheel[place] for place in heapq.nsmallest(most, range(len(wheel)), key=waits))


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
