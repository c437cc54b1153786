"""A node whose control group gets a part of a CPU: the agent's numbers are those of the part, and follow it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from statistics import median

import pytest

from splitinfer.profiler.report import parse_report
from splitinfer.profiler.speeds import ProbeResult, Speeds, speeds_of
from tests.support.groups import CpuGroup, cpu_group
from tests.support.models import smollm2_stored
from tests.support.needs import needs_cpu_groups
from tests.support.running import module, running
from tests.support.scrapes import scraped, until

pytestmark = [needs_cpu_groups, pytest.mark.timeout(180)]

TURNS = 3


def probed(group: CpuGroup) -> tuple[Speeds, float | None]:
    """Speeds of the real model on a node in the group, and the CPUs that the agent counts there."""
    options = ("--once", "--node", "n", "--model", "smollm2", "--threads", "1")
    store = str(smollm2_stored().path.parent)
    command = group.command(*module("splitinfer.profiler.agent", *options, "--store", store))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    report = parse_report(done.stdout)
    assert isinstance(report.probe, ProbeResult), report.probe
    return speeds_of(report.probe), report.usable_cpus


def test_half_a_cpu_has_half_the_speed() -> None:
    """Of the actual model's blocks, against the same group without a limit in turns: 0.35 to 0.7 of it."""
    ratios = []
    with cpu_group() as group:
        for _ in range(TURNS):
            group.limit(None)
            whole, all_cpus = probed(group)
            group.limit(0.5)
            half, cpus = probed(group)
            assert cpus == 0.5
            assert all_cpus is not None
            assert all_cpus >= 1
            pairs = (
                (half.memory_bandwidth_bytes_per_second, whole.memory_bandwidth_bytes_per_second),
                (half.flops_per_second, whole.flops_per_second),
            )
            ratios.append([slow / fast for slow, fast in pairs])
    for several in zip(*ratios, strict=True):
        assert 0.35 < median(several) < 0.7, ratios


def seconds_until(address: str, holds: Callable[[Mapping[str, float]], bool]) -> float:
    """Until a scrape holds; the test's own time limit is the only one."""
    began = time.monotonic()
    until(address, holds)
    return time.monotonic() - began


def test_a_quota_that_changes_under_an_agent_is_seen_within_two_intervals() -> None:
    """Down and up again, without a restart; a second more for the scrape of a node that has a tenth of a CPU."""
    interval = 2.0
    name = 'splitinfer_node_cpus{node="n"}'
    options = ("--node", "n", "--metrics", "127.0.0.1:0", "--interval", str(interval))
    with (
        cpu_group() as group,
        running(group.command(*module("splitinfer.profiler.agent", *options))) as (_, line),
    ):
        address = json.loads(line)["metrics"]
        seconds_until(address, lambda found: name in found)
        assert scraped(address)[name] >= 1
        for cpus in (0.5, 0.25, 0.75):
            group.limit(cpus)

            def is_seen(found: Mapping[str, float], cpus: float = cpus) -> bool:
                return found[name] == cpus

            assert seconds_until(address, is_seen) < 2 * interval + 1
