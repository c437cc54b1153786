"""The window of looks that the agent keeps, and what live traffic does to a reading."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest

from splitinfer.profiler.link_schedule import Peer
from splitinfer.profiler.link_times import LinkTimes
from splitinfer.profiler.live_links import LiveTimes
from splitinfer.profiler.live_window import LOOKS, LiveWindow, machines, with_live
from splitinfer.profiler.sock_diag import SockDiagError, TcpSocket
from splitinfer.profiler.state import LinkReading

PEERS = {"b": Peer("10.0.0.2:9400"), "c": Peer("10.0.0.3:9400"), "d": Peer("10.0.0.3:9401")}
SOCKET = TcpSocket("10.0.0.1:5000", "10.0.0.2:6000", 77, 0.02, 0.02, 1e6, True, 0, 0.01)
READING = LinkReading(100.0, LinkTimes(0.05, 0.06, 5e6))
TOLD = LiveTimes(0.02, 0.021, 2e6, 2e6, 1)


def test_nodes_that_share_a_machine_are_left_out() -> None:
    """Whose connection it is cannot be told from the address of the machine."""
    assert machines(PEERS) == {"10.0.0.2": "b"}


def test_the_window_forgets() -> None:
    """A connection that has been silent for as many looks as are kept tells nothing any more."""
    moved = [0, 1000, 2000, 3000] + [3000] * LOOKS
    window = LiveWindow(lambda: [replace(SOCKET, acknowledged_bytes=moved.pop(0))])
    told = [window.links(PEERS) for _ in moved[:]]
    assert told[0] == {}
    assert told[3]["b"].round_trip_median_seconds == pytest.approx(0.02)
    assert told[3]["b"].moved_bytes == 3000
    assert told[-1] == {}


def test_a_kernel_that_tells_nothing_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    """All links are for probes then; what was seen before the gap is not joined to what comes after."""
    answers: list[Sequence[TcpSocket] | SockDiagError] = [
        [SOCKET],
        SockDiagError("no"),
        SockDiagError("no"),
        [replace(SOCKET, acknowledged_bytes=9)],
    ]

    def look() -> Sequence[TcpSocket]:
        answer = answers.pop(0)
        if isinstance(answer, SockDiagError):
            raise answer
        return answer

    window = LiveWindow(look)
    with caplog.at_level(logging.WARNING):
        assert [window.links(PEERS) for _ in range(4)] == [{}] * 4
    assert [record.getMessage() for record in caplog.records] == ["live traffic cannot be seen: no"]


def test_a_reading_is_as_new_as_its_older_half() -> None:
    """A bandwidth that nobody measured for an hour is not new because the round trip is."""
    both = with_live(READING, TOLD, 200.0)
    assert both == LinkReading(200.0, LinkTimes(0.02, 0.021, 2e6), live=True)
    trip = with_live(READING, replace(TOLD, bandwidth_bytes_per_second=None), 200.0)
    assert trip == LinkReading(100.0, LinkTimes(0.02, 0.021, 5e6), live=True)
    nothing = LiveTimes(None, None, None, 1e3, 1)
    assert with_live(READING, nothing, 200.0) == READING
