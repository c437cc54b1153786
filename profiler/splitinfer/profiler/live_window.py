"""Looks at the connections of this network namespace round by round, and what they tell of the links (`live_links`)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from splitinfer.profiler.link_schedule import Peer
from splitinfer.profiler.live_links import LiveTimes, live_links, merged
from splitinfer.profiler.sock_diag import SockDiagError, TcpSocket, established
from splitinfer.profiler.state import LinkReading

log = logging.getLogger("splitinfer.profiler.agent")

LOOKS = 6
"""That a window has: three of them must tell a round trip."""


def machines(peers: Mapping[str, Peer]) -> Mapping[str, str]:
    """Peers by the host of their agent's address, where it is one peer's alone: the hosts of a node are on its machine.

    Nodes that share a machine, as those of the local substrate do, cannot be told apart by it: they have no part in this.
    """
    found: dict[str, list[str]] = {}
    for name, peer in peers.items():
        found.setdefault(peer.address.rpartition(":")[0], []).append(name)
    return {host: names[0] for host, names in found.items() if len(names) == 1}


def with_live(reading: LinkReading, live: LiveTimes, now: float) -> LinkReading:
    """A link's reading with what its traffic tells.

    It is as new as its older half: only traffic that tells both round trip and bandwidth takes a probe's place. One that
    tells neither leaves all as it was.
    """
    if reading.times is None:
        return reading  # probed in vain: what TCP still tells of it is no link that frames can use
    times = merged(reading.times, live)
    both = live.round_trip_median_seconds is not None and live.bandwidth_bytes_per_second is not None
    return replace(
        reading,
        at=now if both else reading.at,
        times=times,
        live=reading.live if times == reading.times and not both else True,
    )


class LiveWindow:
    """The last `LOOKS` looks."""

    def __init__(self, look: Callable[[], Sequence[TcpSocket]] = established) -> None:
        """Nothing is read yet.

        Args:
            look: at all established connections, now. Raises SockDiagError.
        """
        self._look = look
        self._looks: deque[Sequence[TcpSocket]] = deque(maxlen=LOOKS)
        self._said = ""

    def links(self, peers: Mapping[str, Peer]) -> Mapping[str, LiveTimes]:
        """Look once more; by peer, what its traffic told since the oldest look that is kept."""
        try:
            self._looks.append(self._look())
        except SockDiagError as error:
            self._looks.clear()  # what is old must not look new in the next round
            if str(error) != self._said:
                self._said = str(error)
                log.warning("live traffic cannot be seen: %s", error)
        return live_links(tuple(self._looks), machines(peers))
