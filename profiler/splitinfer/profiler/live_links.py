"""What live traffic says of links, from a few looks at the connections that it runs on (`sock_diag`). Pure.

A probe asks a link; traffic that is there anyway answers for nothing. Two things must not be taken for the link, though:

- The kernel's smoothed round trip runs until the acknowledgement, and one that is delayed (by up to 40 ms, where a frame is an
  odd number of segments) makes it twice as long as frames are under way; so does a queue. Its least round trip knows nothing
  of either, but remembers five minutes. The link's lies between the two. Where they are within 1.4 of one another, their
  geometric mean is at most 18% from it: frames of 2 kB and more show that most of the time, smaller ones seldom, and a link that
  became longer not for these five minutes.
- A sender that has nothing more to send shows a low rate on any link: then it is a lower bound, which never lowers what a
  probe has found.

What is left is unknown, and a probe's business. Round trips here are the kernel's: what the processes at both ends take to
wake up is in a probe's, and not in these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median, quantiles

from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.sock_diag import TcpSocket

AGREEMENT = 1.4
"""Smoothed over least round trip, at most."""
AGREEMENT_SECONDS = 0.0002
"""Besides that; a difference that no step notices."""
LEAST_SAMPLES = 3
"""Of agreeing round trips; fewer may be chance."""


@dataclass(frozen=True, slots=True)
class LiveTimes:
    """One ordered pair, as its traffic shows it. Seconds and bytes per second; None: the traffic does not tell.

    Attributes:
        round_trip_median_seconds: of the looks at which it could be told.
        round_trip_p95_seconds: of the same; known when the median is.
        bandwidth_bytes_per_second: of traffic that filled the link.
        least_bandwidth_bytes_per_second: that it has at least.
        moved_bytes: that arrived at the peer between the first look and the last.
    """

    round_trip_median_seconds: float | None
    round_trip_p95_seconds: float | None
    bandwidth_bytes_per_second: float | None
    least_bandwidth_bytes_per_second: float | None
    moved_bytes: int


def live_links(looks: Sequence[Sequence[TcpSocket]], peers: Mapping[str, str]) -> Mapping[str, LiveTimes]:
    """By peer, for those that data was sent to between two of the looks.

    Args:
        looks: the connections that there were, again and again over a window, the oldest first; a second apart is plenty.
        peers: names by the address of their hosts, ``host:port``, or ``host`` where all of it is theirs.
    """
    flowing: dict[str, list[TcpSocket]] = {}
    moved: dict[str, int] = {}
    for earlier, later in pairwise(looks):
        before = {_identity(one): one.acknowledged_bytes for one in earlier}
        for one in later:
            peer = _peer(one.remote, peers)
            new = one.acknowledged_bytes - before.get(_identity(one), one.acknowledged_bytes)
            if peer is not None and new > 0:
                flowing.setdefault(peer, []).append(one)
                moved[peer] = moved.get(peer, 0) + new
    return {peer: _times(found, moved[peer]) for peer, found in flowing.items()}


def merged(probed: LinkTimes, live: LiveTimes) -> LinkTimes:
    """What is known of a link: the newer reading where there are two, and never less than a lower bound."""
    if live.round_trip_median_seconds is not None and live.round_trip_p95_seconds is not None:
        probed = replace(
            probed,
            round_trip_median_seconds=live.round_trip_median_seconds,
            round_trip_p95_seconds=live.round_trip_p95_seconds,
        )
    band = live.bandwidth_bytes_per_second
    if band is None:
        band = max(probed.bandwidth_bytes_per_second, live.least_bandwidth_bytes_per_second or 0.0)
    return replace(probed, bandwidth_bytes_per_second=band)


def _identity(one: TcpSocket) -> tuple[str, str, int]:
    return one.local, one.remote, one.inode


def _peer(remote: str, peers: Mapping[str, str]) -> str | None:
    return peers.get(remote, peers.get(remote.rpartition(":")[0]))


def _round_trip(one: TcpSocket) -> float | None:
    smoothed, least = one.round_trip_seconds, one.least_round_trip_seconds
    if smoothed is None or least is None:
        return None
    low, high = sorted(
        (smoothed, least)
    )  # the least is the larger one for a moment after its five minutes are over
    agree = high <= max(low * AGREEMENT, low + AGREEMENT_SECONDS)
    return math.sqrt(smoothed * least) if agree else None


def _times(found: Sequence[TcpSocket], moved: int) -> LiveTimes:
    trips = [trip for one in found if (trip := _round_trip(one)) is not None]
    rates = [(one.delivery_bytes_per_second, one.app_limited) for one in found]
    filled = [rate for rate, limited in rates if rate is not None and not limited]
    bounds = [rate for rate, _ in rates if rate is not None]
    known = len(trips) >= LEAST_SAMPLES
    return LiveTimes(
        round_trip_median_seconds=median(trips) if known else None,
        round_trip_p95_seconds=quantiles(trips, n=20, method="inclusive")[-1] if known else None,
        bandwidth_bytes_per_second=median(filled) if len(filled) >= LEAST_SAMPLES else None,
        least_bandwidth_bytes_per_second=median(bounds) if bounds else None,
        moved_bytes=moved,
    )
