"""Agents on nodes whose link becomes bad, and on one that frames flow over: what they export follows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.agents import exported
from tests.support.delay_line import delay
from tests.support.needs import needs_networks
from tests.support.netns import Node, namespaces
from tests.support.running import module, running
from tests.support.shaping import MBIT, shape

pytestmark = [needs_networks, pytest.mark.timeout(120)]

LABELS = '{node="a",peer="b"}'
TRIP, BAND, LIVE = (
    f"splitinfer_link_{name}{LABELS}"
    for name in ("round_trip_median_seconds", "bandwidth_bytes_per_second", "live")
)
READ = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"


@contextmanager
def agent(node: Node, name: str, *options: str) -> Iterator[dict[str, str]]:
    """One that measures each second and may send what it likes."""
    given = ("--node", name, "--listen", f"{node.address}:0", "--metrics", f"{node.address}:0")
    command = module(
        "splitinfer.profiler.agent", *given, "--interval", "1", "--link-budget", "1e11", *options
    )
    with running(node.command(*command)) as (_, line):
        yield json.loads(line)


@contextmanager
def two_agents(folder: Path) -> Iterator[tuple[Node, Node, str]]:
    """Nodes a and b, and the address of a's metrics; a knows b."""
    with namespaces(2) as (a, b), agent(b, "b") as far:
        targets = folder / "targets.json"
        targets.write_text(json.dumps({"peers": {"b": {"address": far["probe"], "site": None}}}))
        with agent(a, "a", "--targets", str(targets)) as near:
            yield a, b, near["metrics"]


def until(node: Node, address: str, holds: Callable[[Mapping[str, float]], bool]) -> Mapping[str, float]:
    """The first scrape for which it holds; the test's own time limit is the only one."""
    while True:
        found = exported(node.own.do(sys.executable, "-I", "-c", READ, f"http://{address}/metrics"))
        if BAND in found and holds(found):
            return found
        time.sleep(0.1)  # between two scrapes, which take part in the load that is measured


def near(found: float, expected: float) -> bool:
    """Within 20%."""
    return found == pytest.approx(expected, rel=0.2)


def test_a_link_that_becomes_bad_is_followed_and_so_is_its_recovery(tmp_path: Path) -> None:
    """10 Mbit/s and 20 ms, both at once, while the agents run; each within 20%."""
    ten = 10 * MBIT / 8
    with two_agents(tmp_path) as (a, _b, address):
        until(a, address, lambda found: found[BAND] > 3 * ten and found[TRIP] < 0.01)
        with shape(a, 10 * MBIT), delay(a, 10):
            found = until(a, address, lambda found: near(found[BAND], ten) and near(found[TRIP], 0.02))
            assert found[LIVE] == 0
        until(a, address, lambda found: found[BAND] > 3 * ten and found[TRIP] < 0.01)


def test_traffic_on_a_link_takes_part_in_its_reading(tmp_path: Path) -> None:
    """20 ms from live frames; what a waiting sender shows of its rate lowers nothing."""
    with two_agents(tmp_path) as (a, b, address), delay(a, 10):
        with running(b.command(*module("tests.support.traffic", f"{b.address}:0", "--listen"))) as (_, line):
            frames = ("--bytes", "40000", "--every", "0.05", "--seconds", "60")
            command = a.command(*module("tests.support.traffic", json.loads(line)["address"], *frames))
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sender:
                found = until(a, address, lambda found: found[LIVE] == 1)
                sender.kill()
    assert near(found[TRIP], 0.02)
    assert found[BAND] > 3 * 10 * MBIT / 8
