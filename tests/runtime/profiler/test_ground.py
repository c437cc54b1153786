"""The ground that tests of slow nodes and bad links stand on: it does what it says, and leaves nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.delay_line import delay
from tests.support.groups import cpu_group
from tests.support.needs import needs_cpu_groups, needs_networks
from tests.support.netns import Node, namespaces
from tests.support.running import module, running
from tests.support.shaping import MBIT, cut, mend, shape
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

BUSY = (sys.executable, "-I", "-c", "print(flush=True)\nwhile True: pass")

LISTEN = """
import socket, sys
with socket.create_server(("", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 16):
                if sys.argv[1] == "echo":
                    connection.sendall(data)
"""
SEND = """
import socket, sys, time
address, port, nbytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.create_connection((address, port), timeout=2) as connection:
    began = time.monotonic()
    connection.sendall(bytes(nbytes))
    if nbytes == 1:
        connection.recv(1)
    else:
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    print(time.monotonic() - began)
"""


def seconds_to_send(sender: Node, receiver: Node, nbytes: int) -> float:
    """Of ``nbytes`` over TCP until the far end has them all; of one byte, there and back."""
    how = "echo" if nbytes == 1 else "take"
    with running(receiver.command(sys.executable, "-I", "-c", LISTEN, how)) as (_, port):
        said = sender.own.do(sys.executable, "-I", "-c", SEND, receiver.address, port, str(nbytes))
    return float(said)


def cpu_share(process: psutil.Process, seconds: float) -> float:
    """CPUs that a process used on average from now on."""
    began, used = time.monotonic(), process.cpu_times()
    time.sleep(seconds)
    now = process.cpu_times()
    return (now.user + now.system - used.user - used.system) / (time.monotonic() - began)


@needs_cpu_groups
def test_a_group_is_truly_slow_and_can_be_changed_while_it_runs() -> None:
    """A quarter of a CPU is never exceeded by more than a period, then all of it can be had, then a tenth."""
    with cpu_group(0.25) as group:
        with running(group.command(*BUSY)) as (process, _):
            assert process.pid in group.members()
            busy = psutil.Process(process.pid)
            quarter = cpu_share(busy, 1.0)
            throttled = group.throttled()
            group.limit(None)
            free = cpu_share(busy, 1.0)
            group.limit(0.1)
            tenth = cpu_share(busy, 1.0)
    # What is behind a limit is exact; how much of a CPU without one is to be had depends on who else wants it.
    assert quarter <= 0.25 + 0.05
    assert throttled >= 5
    assert tenth <= 0.1 + 0.05
    assert free > 2 * tenth
    assert not group.path.exists()


@needs_networks
def test_a_thin_link_is_thin_in_its_direction_only() -> None:
    """200 kB at 4 Mbit/s take 0.4 s, the other way nothing of that."""
    with namespaces(2) as (a, b):
        with shape(a, 4 * MBIT):
            there, back = seconds_to_send(a, b, 200_000), seconds_to_send(b, a, 200_000)
        with shape(a, 4 * MBIT, "in"):
            away, home = seconds_to_send(a, b, 200_000), seconds_to_send(b, a, 200_000)
        free = seconds_to_send(a, b, 200_000)
    ideal = (200_000 - (16 << 10)) * 8 / (4 * MBIT)
    assert ideal < there < 1.3 * ideal
    assert ideal < home < 1.3 * ideal
    assert max(back, away, free) < ideal / 2


@needs_networks
def test_a_delay_line_delays_both_ways_and_can_be_taken_out() -> None:
    """30 ms each way are 60 ms there and back, and gone with the block."""
    with namespaces(2) as (a, b):
        with delay(a, 30):
            late = seconds_to_send(a, b, 1)
        prompt = seconds_to_send(a, b, 1)
    assert 0.060 <= late < 0.075
    assert prompt < 0.015


@needs_networks
def test_a_link_that_is_cut_lets_nothing_through() -> None:
    """Until it is mended."""
    with namespaces(2) as (a, b):
        cut(a)
        with pytest.raises(AssertionError, match=r"timed out|No route"):
            seconds_to_send(a, b, 1)
        mend(a)
        assert seconds_to_send(a, b, 1) > 0


@needs_networks
def test_the_machine_keeps_its_network_and_runs_do_not_meet() -> None:
    """Two sets of nodes at once with the same addresses; the machine's own devices stay what they were."""
    before = sorted(Path("/sys/class/net").iterdir())
    with namespaces(2) as (a, b), namespaces(2) as (c, d):
        assert a.address == c.address
        assert sorted(Path("/sys/class/net").iterdir()) == before
        with shape(c, MBIT):
            thin, free = seconds_to_send(c, d, 100_000), seconds_to_send(a, b, 100_000)
    assert free < thin / 2
    assert sorted(Path("/sys/class/net").iterdir()) == before


@needs_cpu_groups
@needs_networks
def test_a_test_that_is_killed_leaves_nothing() -> None:
    """After SIGKILL every group and every process of it goes, and with them namespaces, taps and bridges."""
    with running(module("tests.support.ground_user")) as (_, line):
        taken = json.loads(line)
        assert all(psutil.pid_exists(pid) for pid in taken["pids"])
    assert len(taken["pids"]) >= 8  # two naps of two, three namespaces, the delay line
    until(lambda: not any(Path(group).exists() for group in taken["groups"]), seconds=15, what="the groups")
    until(lambda: not any(psutil.pid_exists(pid) for pid in taken["pids"]), seconds=15, what="the processes")
