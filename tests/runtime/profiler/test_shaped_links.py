"""Links that are truly slow, long or cut, measured by real probes between two network namespaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.support.delay_line import delay
from tests.support.needs import needs_networks
from tests.support.netns import Node, namespaces
from tests.support.running import module, running
from tests.support.shaping import MBIT, cut, shape
from tests.support.waiting import until

pytestmark = [needs_networks, pytest.mark.timeout(90)]

TEN_MBIT = 10 * MBIT / 8
"""Bytes per second of Ethernet frames."""
CARRIED = 1448 / 1514
"""Of a full frame, what is the connection's."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes, each with an agent that answers."""

    a: Node
    b: Node
    at_a: str
    at_b: str


@contextmanager
def agent(node: Node) -> Iterator[str]:
    """An agent on a node; gives its address."""
    options = ("--node", "n", "--listen", f"{node.address}:0")
    with running(node.command(*module("splitinfer.profiler.agent", *options))) as (_, line):
        yield json.loads(line)["probe"]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Unshaped; a test leaves it as it was."""
    with namespaces(2) as (a, b), agent(a) as at_a, agent(b) as at_b:
        yield Pair(a, b, at_a, at_b)


def probe(node: Node, address: str, *options: str) -> dict[str, float]:
    """What a probe from ``node`` finds. AssertionError where it finds nothing."""
    found: dict[str, float] = json.loads(node.own.do(*module("tests.support.prober", address, *options)))
    assert "error" not in found, found
    return found


def test_ten_megabits_are_seen(pair: Pair) -> None:
    """Within 20% of what is left of it without the frames' headers; the round trip is not that of the full link."""
    free = probe(pair.a, pair.at_b)
    with shape(pair.a, 10 * MBIT):
        thin = probe(pair.a, pair.at_b)
    assert thin["bandwidth_bytes_per_second"] == pytest.approx(TEN_MBIT * CARRIED, rel=0.2)
    assert thin["round_trip_median_seconds"] < free["round_trip_median_seconds"] + 0.005
    assert free["bandwidth_bytes_per_second"] > 3 * TEN_MBIT


def test_a_bucket_of_128_kilobytes_is_seen_through(pair: Pair) -> None:
    """What a link lets through at once after it was idle is not what it can do."""
    with shape(pair.a, 10 * MBIT, burst_bytes=128 << 10):
        thin = probe(pair.a, pair.at_b)
    assert thin["bandwidth_bytes_per_second"] == pytest.approx(TEN_MBIT * CARRIED, rel=0.2)


def test_twenty_milliseconds_are_seen(pair: Pair) -> None:
    """Of the round trip, within 20%."""
    with delay(pair.a, 10):
        found = probe(pair.a, pair.at_b)
    assert found["round_trip_median_seconds"] == pytest.approx(0.020, rel=0.2)
    assert found["bandwidth_bytes_per_second"] > TEN_MBIT


def test_a_link_that_is_thin_and_long_is_both(pair: Pair) -> None:
    """Neither reading is part of the other."""
    with delay(pair.a, 10), shape(pair.a, 10 * MBIT):
        found = probe(pair.a, pair.at_b)
    assert found["round_trip_median_seconds"] == pytest.approx(0.020, rel=0.2)
    assert found["bandwidth_bytes_per_second"] == pytest.approx(TEN_MBIT * CARRIED, rel=0.2)


def test_only_the_direction_that_is_thin_is_seen_thin(pair: Pair) -> None:
    """Ordered pairs: what node a sends is held back, what it gets is not; and the other way round."""
    with shape(pair.a, 10 * MBIT):
        there, back = probe(pair.a, pair.at_b), probe(pair.b, pair.at_a)
    assert there["bandwidth_bytes_per_second"] == pytest.approx(TEN_MBIT * CARRIED, rel=0.2)
    assert back["bandwidth_bytes_per_second"] > 3 * TEN_MBIT
    with shape(pair.a, 10 * MBIT, "in"):
        there, back = probe(pair.a, pair.at_b), probe(pair.b, pair.at_a)
    assert there["bandwidth_bytes_per_second"] > 3 * TEN_MBIT
    assert back["bandwidth_bytes_per_second"] == pytest.approx(TEN_MBIT * CARRIED, rel=0.2)


def sent_bytes(node: Node) -> int:
    """That left the node's device, headers included."""
    (device,) = json.loads(node.own.do("ip", "-json", "-statistics", "link", "show", "dev", "eth0"))
    return int(device["stats64"]["tx"]["bytes"])


def test_one_megabit_is_seen_with_few_bytes(pair: Pair) -> None:
    """A slow link is measured in its time, and is not filled for long: 130 kB with all headers, about a second."""
    with shape(pair.a, MBIT):
        before = sent_bytes(pair.a)
        found = probe(pair.a, pair.at_b, "--timeout", "3")
        sent = sent_bytes(pair.a) - before
    assert found["bandwidth_bytes_per_second"] == pytest.approx(TEN_MBIT / 10 * CARRIED, rel=0.2)
    assert sent < 130_000


def test_a_link_that_is_cut_under_a_probe_is_an_error_in_its_time(pair: Pair) -> None:
    """Cut while a train is on its way over a thin link: no number comes of the part that arrived."""
    with namespaces(2) as (c, d), agent(d) as at_d, shape(c, MBIT), ExitStack() as stack:
        command = c.command(*module("tests.support.prober", at_d, "--timeout", "2"))
        prober = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(prober.kill)
        before = sent_bytes(c)
        until(lambda: sent_bytes(c) > before + 40_000, seconds=20, what="the second train")
        cut(c)
        said, _ = prober.communicate(timeout=20)
    assert json.loads(said) == {"error": f"{at_d}: no answer in 2 s"}


def test_a_fast_link_is_not_made_slow_by_the_probe(pair: Pair) -> None:
    """At least a quarter of what 64 MB take over the same stream in the same minute: the best that frames can get."""
    found = max(probe(pair.a, pair.at_b)["bandwidth_bytes_per_second"] for _ in range(3))
    long = json.loads(pair.a.own.do(*module("tests.support.prober", pair.at_b, "--stream", "64")))
    assert found > long["bandwidth_bytes_per_second"] / 4
