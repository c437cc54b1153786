"""What is scraped: exactly the named series, absent where nothing is known, with ages of a monotonic clock."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from splitinfer.profiler.calibration import Calibration, Sample
from splitinfer.profiler.exporter import AgentCollector, Published, registry_of
from splitinfer.profiler.series import AGENT_SERIES
from splitinfer.profiler.speeds import speeds_of
from splitinfer.profiler.state import AgentState, Counts, LinkReading, NodeReading, ProbeReading
from splitinfer.profiler.targets import ProbeTarget
from tests.support.agents import TIMES, exported, probe_result

AUTO, ONNX = ProbeTarget(model="m"), ProbeTarget(model="m", engine="onnx")
NODE = NodeReading(90.0, 1 << 30, 1.5, 4, 0.25, 1.25, 0.5)
FULL = AgentState(
    node=NODE,
    probes={
        AUTO: ProbeReading(
            70.0,
            probe_result(free_device_bytes=5),
            speeds_of(probe_result()),
            Calibration(tuple(Sample(1.25, at) for at in (80.0, 85.0, 88.0))),
        )
    },
    links={"peer": LinkReading(95.0, TIMES, live=True)},
    counts=Counts(
        probe_cpu_seconds=2.5, targets_errors=1, scrape_errors=2, link_errors=3, link_bytes=4
    ).with_run("done", 0.5),
)
PROBE = f'{{dtype="float32",engine="onnx",model="{"a" * 64}",node="me"}}'


def scraped(state: AgentState, now: float = 100.0) -> str:
    """The exposition of a state."""
    collector = AgentCollector("me", ("1", "cpu"), Published(state), lambda: now, 120.0)
    return generate_latest(registry_of(collector)).decode()


def test_everything_that_is_named_is_exported_as_it_is_named() -> None:
    """Names, kinds, help and labels are those of `AGENT_SERIES`, and there is no other series."""
    found = {}
    for family in text_string_to_metric_families(scraped(FULL)):
        for sample in family.samples:
            found[sample.name] = (family.documentation, family.type, frozenset(sample.labels))
    assert found == {s.name: (s.help, s.kind, frozenset(s.labels)) for s in AGENT_SERIES}


def test_a_link_that_was_probed_in_vain_has_an_age_and_nothing_else() -> None:
    """So a reader can tell it from one that nobody tried, which it would estimate."""
    found = exported(scraped(FULL.with_link("peer", LinkReading(99.0, None))))
    assert {name: value for name, value in found.items() if "peer=" in name} == {
        'splitinfer_link_age_seconds{node="me",peer="peer"}': 1.0
    }


def test_values_and_ages() -> None:
    """In base units; the speeds are those of `speeds_of`, and every age is that of its own reading."""
    found, speeds = exported(scraped(FULL)), speeds_of(probe_result())
    me, link = '{node="me"}', '{node="me",peer="peer"}'
    assert {
        f"splitinfer_node_age_seconds{me}": 10.0,
        f"splitinfer_node_memory_available_bytes{me}": 1 << 30,
        f"splitinfer_node_device_memory_available_bytes{me}": 5.0,
        f"splitinfer_node_cpus{me}": 1.5,
        f"splitinfer_node_machine_cpus{me}": 4.0,
        f"splitinfer_node_cpu_busy_ratio{me}": 0.25,
        f"splitinfer_node_runnable_threads{me}": 1.25,
        f"splitinfer_node_serving_ratio{me}": 0.5,
        f"splitinfer_node_probe_cpu_seconds_total{me}": 3.0,
        'splitinfer_node_probe_runs_total{node="me",outcome="done"}': 1.0,
        'splitinfer_node_probe_runs_total{node="me",outcome="serving"}': 0.0,
        f"splitinfer_link_probe_bytes_total{me}": 4.0,
        f"splitinfer_probe_age_seconds{PROBE}": 30.0,
        f"splitinfer_probe_memory_bandwidth_bytes_per_second{PROBE}": speeds.memory_bandwidth_bytes_per_second,
        f"splitinfer_probe_flops_per_second{PROBE}": speeds.flops_per_second,
        f"splitinfer_probe_block_decode_seconds{PROBE}": pytest.approx(0.0015),
        f"splitinfer_probe_block_prefill_seconds{PROBE}": pytest.approx(0.015),
        f"splitinfer_probe_calibration_ratio{PROBE}": 1.25,
        f"splitinfer_probe_calibration_age_seconds{PROBE}": 12.0,
        f"splitinfer_link_age_seconds{link}": 5.0,
        f"splitinfer_link_round_trip_median_seconds{link}": 0.001,
        f"splitinfer_link_bandwidth_bytes_per_second{link}": 1e8,
        f"splitinfer_link_live{link}": 1.0,
    }.items() <= found.items()


def test_what_is_unknown_is_absent() -> None:
    """Before any reading there are counters only; a reading that lacks a value lacks its series, and nothing is NaN."""
    empty = exported(scraped(AgentState()))
    assert {name.partition("{")[0] for name in empty} == {
        "splitinfer_node_info",
        *(series.name for series in AGENT_SERIES if series.kind == "counter"),
    }
    lacking = replace(NODE, memory_available_bytes=None, machine_cpus=None, busy_ratio=None, runnable=None)
    some = scraped(AgentState(node=replace(lacking, serving_ratio=None)))
    for part in ("memory", "machine", "busy", "runnable", "serving_ratio", "device_memory", "NaN"):
        assert part not in "".join(line for line in some.splitlines() if not line.startswith("#"))
    assert 'splitinfer_node_cpus{node="me"} 1.5' in some


def test_the_memory_of_a_gpu_is_told_only_while_a_probe_is_new() -> None:
    """Its age is not the node's."""
    assert "device_memory" in scraped(FULL, now=190.0)
    assert "device_memory" not in scraped(FULL, now=191.0)


def test_two_targets_that_are_one_are_exported_once() -> None:
    """``auto`` that became onnx, and onnx: the newer counts, and Prometheus gets no series twice."""
    older = ProbeReading(60.0, probe_result(threads=2), speeds_of(probe_result()))
    newer = ProbeReading(65.0, probe_result(threads=3), speeds_of(probe_result()))
    found = scraped(AgentState(probes={AUTO: newer, ONNX: older}))
    assert found.count("\nsplitinfer_probe_threads{") == 1
    assert exported(found)[f"splitinfer_probe_threads{PROBE}"] == 3.0


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages grow with the monotonic clock, and with it alone."""
    before = scraped(FULL)
    for jump in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        assert scraped(FULL) == before
