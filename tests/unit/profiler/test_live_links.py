"""What live traffic tells of links, from looks that are written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.live_links import LiveTimes, live_links, merged
from splitinfer.profiler.sock_diag import TcpSocket

BASE = TcpSocket("10.0.0.1:5000", "10.0.0.2:6000", 77, 0.021, 0.020, 1e6, True, 1000, 0.01)
PEERS = {"10.0.0.2:6000": "b", "10.0.0.3": "c"}
PROBED = LinkTimes(0.05, 0.06, 5e6)


def looks(*trips: float, moves: int = 5000, base: TcpSocket = BASE) -> list[list[TcpSocket]]:
    """One connection that moves so many bytes from look to look, with these smoothed round trips; one look before."""
    return [
        [replace(base, round_trip_seconds=trip, acknowledged_bytes=1000 + moves * i)]
        for i, trip in enumerate((0.9, *trips))
    ]


def test_traffic_tells_the_round_trip_and_a_lower_bound() -> None:
    """The median over the looks at which data had moved."""
    found = live_links(looks(0.020, 0.0242, 0.0264), PEERS)
    middle, high = 0.020 * 1.21**0.5, 0.020 * 1.32**0.5
    assert found.keys() == {"b"}
    assert found["b"].round_trip_median_seconds == pytest.approx(middle)
    assert found["b"].round_trip_p95_seconds == pytest.approx(high, rel=0.01)
    assert replace(found["b"], round_trip_median_seconds=1.0, round_trip_p95_seconds=1.0) == LiveTimes(
        1.0, 1.0, None, 1e6, 15000
    )


def test_silence_tells_nothing() -> None:
    """An open connection on which nothing moves is no live traffic, whatever the kernel remembers of it."""
    assert live_links(looks(0.02, 0.02, 0.02, moves=0), PEERS) == {}
    assert live_links(looks()[:1], PEERS) == {}
    assert live_links([], PEERS) == {}


def test_a_connection_that_is_new_between_two_looks_is_not_counted_yet() -> None:
    """What it moved before the look that first shows it, nobody can say when; nor is another one taken for it."""
    first, second = looks(0.02)
    assert live_links([[], second], PEERS) == {}
    assert live_links([first, [replace(second[0], inode=78)]], PEERS) == {}


def test_round_trips_that_disagree_with_the_least_are_left_out() -> None:
    """Delayed acknowledgements and queues; with less than three that agree, the round trip is unknown."""
    found = live_links(looks(0.045, 0.020, 0.051, 0.0242, 0.060, 0.022), PEERS)["b"]
    assert found.round_trip_median_seconds == pytest.approx((0.020 * 0.022) ** 0.5)
    unknown = live_links(looks(0.045, 0.020, 0.051, 0.021), PEERS)["b"]
    assert unknown.round_trip_median_seconds is None
    assert unknown.round_trip_p95_seconds is None
    assert unknown.least_bandwidth_bytes_per_second == 1e6


@given(st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=30), st.floats(1e-5, 0.5))
def test_a_round_trip_is_within_a_fifth_of_what_the_kernel_says(trips: list[float], least: float) -> None:
    """Whatever it smooths: of the least round trip, unless it is unknown; 0.2 ms do not matter."""
    base = replace(BASE, least_round_trip_seconds=least)
    found = live_links(looks(*trips, base=base), PEERS)["b"].round_trip_median_seconds
    assert found is None or abs(found - least) <= max(0.2 * least, 2e-4)


def test_a_filled_link_tells_its_bandwidth() -> None:
    """Only looks at which the sender had more to send count, three at least."""
    full = replace(BASE, app_limited=False, delivery_bytes_per_second=2e6)
    assert live_links(looks(0.02, 0.02, 0.02, base=full), PEERS)["b"].bandwidth_bytes_per_second == 2e6
    assert live_links(looks(0.02, 0.02, base=full), PEERS)["b"].bandwidth_bytes_per_second is None


def test_peers_are_known_by_address_or_by_machine() -> None:
    """Every connection to a machine that is one peer's counts; one to nobody's counts for nobody."""
    to_c = [replace(BASE, remote=f"10.0.0.3:{port}", inode=port) for port in (1, 2)]
    to_nobody = replace(BASE, remote="10.0.0.4:6000")
    later = [replace(one, acknowledged_bytes=3000) for one in (*to_c, to_nobody)]
    found = live_links([[*to_c, to_nobody], later], PEERS)
    assert found.keys() == {"c"}
    assert found["c"].moved_bytes == 4000


def test_a_lower_bound_raises_what_was_probed_and_never_lowers_it() -> None:
    """A sender that waits for tokens shows next to nothing of its link."""
    waiting = LiveTimes(None, None, None, 1e5, 1)
    assert merged(PROBED, waiting) == PROBED
    more = merged(PROBED, replace(waiting, least_bandwidth_bytes_per_second=7e6))
    assert more == replace(PROBED, bandwidth_bytes_per_second=7e6)


def test_what_traffic_tells_is_newer_than_a_probe() -> None:
    """A link that its traffic fills at less than was probed has become thinner."""
    live = LiveTimes(0.02, 0.021, 2e6, 2e6, 1)
    assert merged(PROBED, live) == LinkTimes(0.02, 0.021, 2e6)
