"""Live traffic over links that are truly long or thin, read from the kernel by the process that sends."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from splitinfer.profiler.sock_diag import established
from tests.support.delay_line import delay
from tests.support.needs import needs_networks
from tests.support.netns import Node, namespaces
from tests.support.running import module, running
from tests.support.shaping import MBIT, shape

pytestmark = pytest.mark.timeout(90)
FRAME = ("--bytes", "9300")


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node, str]]:
    """Sender, receiver, and where it listens."""
    with namespaces(2) as (a, b):
        options = (f"{b.address}:0", "--listen")
        with running(b.command(*module("tests.support.traffic", *options))) as (_, line):
            yield a, b, json.loads(line)["address"]


def send(node: Node, address: str, *options: str) -> dict[str, Any]:
    """Frames for 3 s; what they told."""
    done: dict[str, Any] = json.loads(
        node.own.do(*module("tests.support.traffic", address, "--seconds", "3", *options))
    )
    return done


@needs_networks
def test_a_long_link_is_seen_in_its_traffic() -> None:
    """20 ms within 20%, though acknowledgements are delayed; the rate of a sender that waits is a lower bound only."""
    with two_nodes() as (a, _b, address), delay(a, 10):
        live = send(a, address, *FRAME)["live"]
    assert live["round_trip_median_seconds"] == pytest.approx(0.020, rel=0.2)
    assert live["round_trip_p95_seconds"] >= live["round_trip_median_seconds"]
    assert live["bandwidth_bytes_per_second"] is None
    assert live["least_bandwidth_bytes_per_second"] > 0
    assert live["moved_bytes"] > 50 * 9300


@needs_networks
def test_a_thin_link_is_seen_in_traffic_that_fills_it() -> None:
    """10 Mbit/s within 20%; the queue in front of it is no round trip of the link, and is not taken for one."""
    with two_nodes() as (a, _b, address), shape(a, 10 * MBIT):
        live = send(a, address, "--bytes", "100000", "--every", "0.01")["live"]
    assert live["bandwidth_bytes_per_second"] == pytest.approx(10 * MBIT / 8 * 1448 / 1514, rel=0.2)
    assert live["round_trip_median_seconds"] is None


def ss(local: str) -> str:
    """What iproute2's ``ss`` says of the connection that this end belongs to."""
    said = subprocess.run(["ss", "-tinH", "src", local], capture_output=True, text=True, check=True)
    return said.stdout


@pytest.mark.skipif(shutil.which("ss") is None, reason="needs the program ss")
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_is_read_as_ss_reads_it(family: socket.AddressFamily, host: str) -> None:
    """Every field against iproute2, on a connection that is silent while both look."""
    with (
        socket.create_server((host, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as ours,
        server.accept()[0] as theirs,
    ):
        for _ in range(50):
            ours.sendall(bytes(3000))
            theirs.recv(3000, socket.MSG_WAITALL)
        mine = f"[{host}]" if ":" in host else host
        local, remote = (f"{mine}:{one.getsockname()[1]}" for one in (ours, theirs))
        (found,) = (one for one in established() if one.local == local)
        said = ss(local)
        assert Path(f"/proc/self/fd/{ours.fileno()}").readlink() == Path(f"socket:[{found.inode}]")
    assert found.remote == remote
    assert found.round_trip_seconds == pytest.approx(_number(said, r"rtt:([\d.]+)/") / 1e3)
    assert found.least_round_trip_seconds == pytest.approx(_number(said, r"minrtt:([\d.]+)") / 1e3)
    assert found.acknowledged_bytes == _number(said, r"bytes_acked:(\d+)")
    assert found.delivery_bytes_per_second == pytest.approx(
        _number(said, r"delivery_rate (\d+)bps") / 8, rel=0.01
    )
    assert found.app_limited == ("app_limited" in said)
    assert found.idle_seconds == pytest.approx(_number(said, r"lastsnd:(\d+)", 0.0) / 1e3, abs=2.0)


def _number(text: str, pattern: str, default: float | None = None) -> float:
    found = re.search(pattern, text)
    if found is None and default is not None:
        return default
    assert found is not None, text
    return float(found[1])
