"""A real Prometheus server between agents and the reader: ages, names, death, and a server that goes and comes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from splitinfer.optimizer.capacity import CapacitySnapshot, NodeCapacity
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.inventory import Inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.prometheus import Prometheus, http_config
from splitinfer.profiler.reader import read_snapshot
from splitinfer.profiler.sources import PrometheusSource, SourceError
from tests.support.agent_values import (
    DTYPE,
    MODEL,
    PROBE,
    Exporter,
    Values,
    exposition,
    link_values,
    node_values,
)
from tests.support.prometheus_server import PrometheusServer, prometheus_server

ASKED = Asked(MODEL, DTYPE)
BOUNDS = StaleBounds(state=6, speeds=60, links=60)
"""Short, so that a death is seen in a test; six scrapes."""


async def read(url: str, bounds: StaleBounds = BOUNDS, **config: Any) -> CapacitySnapshot:
    """What the reader makes of the server now."""
    async with Prometheus(url, http_config(config)) as client:
        source = PrometheusSource(client, bounds.window_seconds)
        snapshot, gathered = await read_snapshot(source, ASKED, Inventory(), bounds)
        assert gathered.failures == {}
        return snapshot


async def read_until(url: str, done: Any, seconds: float = 30.0, **config: Any) -> CapacitySnapshot:
    """Read until the snapshot is as wanted; the last one is told where it never is."""
    end = time.monotonic() + seconds
    while True:
        try:
            snapshot = await read(url, **config)
            if done(snapshot):
                return snapshot
            last: object = snapshot
        except SourceError as error:
            last = error
        assert time.monotonic() < end, last


def named(snapshot: CapacitySnapshot) -> dict[str, NodeCapacity]:
    """Nodes by name."""
    return {node.name: node for node in snapshot.nodes}


def known(node: NodeCapacity) -> bool:
    """Everything."""
    return all(isinstance(reading, Known) for _, reading in node.readings(DTYPE))


def targets(*addresses: str, **labels: str) -> dict[str, Any]:
    """A job's settings."""
    return {"static_configs": [{"targets": list(addresses), "labels": labels}]}


def of(**changes: float) -> Values:
    """A node that has everything, and was read 2 s ago."""
    return node_values(**changes)


@pytest.fixture
def exporters() -> Iterator[list[Exporter]]:
    """Agents of the nodes a and b, which know their links."""
    with ExitStack() as stack:
        bodies = (
            exposition("a", of(memory=4e9) | link_values("b")),
            exposition("b", of(memory=5e9) | link_values("a", bandwidth=3e8)),
        )
        yield [stack.enter_context(Exporter(body)) for body in bodies]


@pytest.fixture
def server(tmp_path: Path, exporters: list[Exporter]) -> Iterator[PrometheusServer]:
    """It scrapes them each second."""
    job = {"honor_labels": True, **targets(*(one.address for one in exporters))}
    with prometheus_server(tmp_path / "prometheus", {"agents": job}) as running:
        yield running


async def test_values_and_ages_are_the_agents(server: PrometheusServer) -> None:
    """An age is what the agent said at the scrape, and the time since then: less than a scrape and what a question takes."""
    snapshot = await read_until(server.url, lambda found: len(found.nodes) == 2)
    a, b = snapshot.nodes
    assert (a.name, b.name) == ("a", "b")
    assert known(a)
    assert known(b)
    assert isinstance(a.free_memory_bytes, Known)
    assert isinstance(b.free_memory_bytes, Known)
    assert (a.free_memory_bytes.value, b.free_memory_bytes.value) == (4e9, 5e9)
    assert a.free_memory_bytes.source == "agent"
    assert 2 <= a.free_memory_bytes.age_seconds <= BOUNDS.state
    speed = a.memory_bandwidth_bytes_per_second
    assert isinstance(speed, Known)
    # The same scrape: the ages differ by exactly what the agent's own clock said.
    assert speed.age_seconds - a.free_memory_bytes.age_seconds == pytest.approx(28, abs=1e-6)
    assert [(link.from_node, link.to_node) for link in snapshot.links] == [("a", "b"), ("b", "a")]
    assert [getattr(link.bandwidth_bytes_per_second, "value", None) for link in snapshot.links] == [1e8, 3e8]
    assert not any(node.trusted for node in snapshot.nodes)


async def test_a_node_that_dies_turns_unknown_within_its_bound(
    server: PrometheusServer, exporters: list[Exporter]
) -> None:
    """One failed scrape is no death; the bound after the last good one is. The other node stays known."""
    await read_until(server.url, lambda found: len(found.nodes) == 2 and all(map(known, found.nodes)))
    exporters[0].status = 500
    gone = await read_until(server.url, lambda found: not known(named(found)["a"]))
    reading = named(gone)["a"].free_memory_bytes
    assert isinstance(reading, Unknown)
    said = re.fullmatch(r"stale: (\d+) s old, at most 6 s \(agent\)", reading.unknown)
    assert said is not None, reading.unknown
    assert BOUNDS.state <= int(said[1]) <= BOUNDS.state + 4  # questions follow one another at once
    assert known(named(gone)["b"])
    exporters[0].status = 200
    await read_until(server.url, lambda found: known(named(found)["a"]))


async def test_a_value_that_an_agent_withdraws_is_unknown_at_the_next_scrape(
    server: PrometheusServer, exporters: list[Exporter]
) -> None:
    """Though the server still has the old one in the range that is asked for."""
    await read_until(server.url, lambda found: len(found.nodes) == 2 and all(map(known, found.nodes)))
    values = of(memory=4e9)
    del values[s.NODE_RUNNABLE, ()], values[s.NODE_CPU_BUSY, ()]
    exporters[0].body = exposition("a", values)
    late = await read_until(server.url, lambda found: not known(named(found)["a"]))
    reading = named(late)["a"].background_utilisation
    assert isinstance(reading, Unknown)
    assert "does not say" in reading.unknown


async def test_without_honor_labels_the_nodes_are_the_same(tmp_path: Path, exporters: list[Exporter]) -> None:
    """The server then keeps its own label `node` and renames the agents'."""
    jobs = {
        f"job-{i}": targets(one.address, node=f"target-{i}", peer="p", engine="e")
        for i, one in enumerate(exporters)
    }
    with prometheus_server(tmp_path / "prometheus", jobs) as server:
        snapshot = await read_until(server.url, lambda found: len(found.nodes) == 2)
    assert sorted(named(snapshot)) == ["a", "b"]
    assert all(map(known, snapshot.nodes))
    assert [(link.from_node, link.to_node) for link in snapshot.links] == [("a", "b"), ("b", "a")]


async def test_two_agents_that_speak_for_one_node_leave_it_unknown_and_one_scraped_twice_does_not(
    tmp_path: Path, exporters: list[Exporter]
) -> None:
    """Two jobs over one agent are no contradiction."""
    first, second = exporters
    second.body = exposition("a", of(memory=5e9))
    job = {"honor_labels": True, **targets(first.address)}
    both = {"honor_labels": True, **targets(first.address, second.address)}
    with prometheus_server(tmp_path / "twice", {"one": job, "two": job}) as server:
        assert all(map(known, (await read_until(server.url, lambda found: bool(found.nodes))).nodes))
    with prometheus_server(tmp_path / "both", {"one": both}) as server:
        snapshot = await read_until(server.url, lambda found: not known(found.nodes[0]))
    reading = snapshot.nodes[0].free_memory_bytes
    assert isinstance(reading, Unknown)
    assert reading.unknown.startswith("agents at ")
    assert "both speak for it" in reading.unknown


async def test_an_agent_that_comes_back_elsewhere_takes_its_old_place(
    tmp_path: Path, exporters: list[Exporter]
) -> None:
    """A pod that is replaced has another address: the old one's values end with it, and contradict nothing."""
    old, new = exporters
    new.body, new.status = exposition("a", of(memory=7e9)), 503
    job = {"honor_labels": True, **targets(old.address, new.address)}
    with prometheus_server(tmp_path / "prometheus", {"agents": job}) as server:
        await read_until(server.url, lambda found: known(found.nodes[0]))
        old.status, new.status = 503, 200
        snapshot = await read_until(
            server.url,
            lambda found: getattr(found.nodes[0].free_memory_bytes, "value", 0) == 7e9,
        )
    assert known(snapshot.nodes[0])


def test_the_probe_of_these_tests_is_the_one_asked_for() -> None:
    """Else everything would be unknown for another reason."""
    assert (ASKED.model, ASKED.dtype) == PROBE[:2]
