"""A real node_exporter behind a real Prometheus: what is taken from it is what the machine itself says."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import Known
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.holder import Holder
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.others import Other, others_by_node
from splitinfer.profiler.prometheus import Prometheus, http_config
from splitinfer.profiler.reader import read_snapshot
from splitinfer.profiler.sources import PrometheusSource, SourceError
from tests.support.agent_values import DTYPE, MODEL, Exporter, exposition, node_values
from tests.support.programs import program
from tests.support.prometheus_server import PrometheusServer, prometheus_server
from tests.support.waiting import until

BOUNDS = StaleBounds()


@pytest.fixture
def node_exporter() -> Iterator[str]:
    """Its address."""
    binary = program("prometheus-node-exporter", package="prometheus-node-exporter")
    process = subprocess.Popen(
        [binary, "--web.listen-address=127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    assert process.stderr is not None
    Thread(target=said.extend, args=(process.stderr,), daemon=True).start()

    def address() -> str | None:
        found = re.search(r'msg="Listening on" address=(\S+)', "".join(said))
        return None if found is None else found[1]

    try:
        until(lambda: address() is not None, seconds=30, what="node_exporter to listen")
        yield str(address())
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def agent() -> Iterator[Exporter]:
    """An agent that can tell neither memory nor load; its node is called as the machine is."""
    name = Path("/proc/sys/kernel/hostname").read_text().strip()
    lost = (s.NODE_MEMORY, s.NODE_RUNNABLE, s.NODE_CPU_BUSY, s.NODE_MACHINE_CPUS)
    values = {key: value for key, value in node_values(threads=1).items() if key[0] not in lost}
    with Exporter(exposition(name, values)) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path, node_exporter: str, agent: Exporter) -> Iterator[PrometheusServer]:
    """It scrapes both; nothing but `node_uname_info` says whose node_exporter it is."""
    jobs = {
        "agents": {"static_configs": [{"targets": [agent.address]}]},
        "node": {"static_configs": [{"targets": [node_exporter]}]},
    }
    with prometheus_server(tmp_path / "prometheus", jobs) as running:
        yield running


async def snapshot(url: str) -> CapacitySnapshot:
    """What is known now."""
    async with Prometheus(url, http_config({})) as client:
        source = PrometheusSource(client, BOUNDS.window_seconds)
        found, _ = await read_snapshot(source, Asked(MODEL, DTYPE), bounds=BOUNDS)
        return found


async def busy(url: str) -> Other:
    """What node_exporter says of the one machine."""
    async with Prometheus(url, http_config({})) as client:
        gathered = await PrometheusSource(client, BOUNDS.window_seconds).gather()
        found = others_by_node(gathered.samples, gathered.now_seconds, BOUNDS)
        return next(iter(found.values()), Other())


async def known(url: str) -> CapacitySnapshot:
    """Once there were two scrapes."""
    for _ in range(600):
        try:
            found = await snapshot(url)
        except SourceError:
            continue
        if isinstance(found.nodes[0].background_utilisation, Known):
            return found
    raise AssertionError("load was never known")


async def test_memory_and_load_are_the_machines_own(server: PrometheusServer) -> None:
    """Within what they change in the seconds between; joined by the machine's name."""
    node = (await known(server.url)).nodes[0]
    assert isinstance(node.free_memory_bytes, Known)
    assert isinstance(node.background_utilisation, Known)
    assert {node.free_memory_bytes.source, node.background_utilisation.source} == {"node_exporter"}
    free = psutil.virtual_memory().available  # of the machine, as the exporter has it: no control group's
    assert node.free_memory_bytes.value == pytest.approx(free, rel=0.5)
    other = await busy(server.url)
    assert isinstance(other.busy, Known)
    assert 0 <= other.busy.value <= other.cpus == os.cpu_count()


async def test_a_server_that_goes_down_and_comes_back_is_held_over(server: PrometheusServer) -> None:
    """The last snapshot stays with the reason beside it, older by the time that passed; then there is a new one."""
    await known(server.url)
    holder = Holder(lambda: snapshot(server.url))
    before = await holder.refresh()
    assert before.last_error is None
    server.stop()
    down = await holder.refresh()
    assert down.snapshot is before.snapshot
    assert str(down.last_error).startswith(f"{server.url}: ")
    assert down.now_seconds > before.now_seconds
    server.start()
    back = await holder.refresh()
    assert back.last_error is None
    assert back.snapshot is not None
    assert before.snapshot is not None
    assert back.snapshot.taken_at_seconds > before.snapshot.taken_at_seconds
    # What was scraped before it went down is still there, with its true age.
    reading = back.snapshot.nodes[0].free_memory_bytes
    assert isinstance(reading, Known)
    assert reading.age_seconds <= BOUNDS.state
