"""Which links a node probes next. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    node: str, peers: Mapping[str, Peer], ages_seconds: Mapping[str, float], round_number: int, most: int
) -> tuple[str, ...]:
    """The peers that ``node`` probes in this round, at most ``most``: never measured first, then the oldest.

    Args:
        node: who asks; ties are broken so that nodes do not all probe the same one.
        peers: all that could be probed, by name.
        ages_seconds: of the readings there are, by peer.
        round_number: how many rounds there were before.
        most: links that the budget of this round allows.
    """
    del round_number
    names = sorted(name for name in peers if name != node)
    start = sum(name < node for name in names)  # everybody begins behind himself
    turned = names[start:] + names[:start]
    turned.sort(key=lambda name: -ages_seconds.get(name, float("inf")))
    return tuple(turned[:most])
