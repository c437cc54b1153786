"""From what the agent says of this machine to the snapshot of the nodes that its processes stand for."""

from __future__ import annotations

import pytest

from splitinfer.operator.local.profiling import local_snapshot
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler.report import AgentReport
from tests.support.agents import probe_result


def report(**changes: object) -> AgentReport:
    """Two CPUs, 3 GB."""
    values = {"node": "n", "probe": probe_result(), "free_memory_bytes": 3000, "machine_cpus": 2} | changes
    return AgentReport.model_validate(values)


@pytest.mark.parametrize(
    ("runnable", "threads", "used"), [(0.0, 1, 0.0), (1.0, 1, 0.0), (2.0, 1, 1 / 2), (1.0, 2, 1 / 3)]
)
def test_what_others_use_is_what_the_scheduler_leaves_us_less(
    runnable: float, threads: int, used: float
) -> None:
    """Two threads of others beside one of ours on two CPUs leave it half of its speed, not nothing."""
    said = report(runnable_threads=runnable, probe=probe_result(threads=threads), utilisation=0.99)
    (node, _) = local_snapshot(said, "float32", ["a", "b"], 5.0).nodes
    assert isinstance(node.background_utilisation, Known)
    assert node.background_utilisation.value == pytest.approx(used)
    assert isinstance(node.free_memory_bytes, Known)
    assert node.free_memory_bytes.value == 1500


@pytest.mark.parametrize(
    "unknown", [{"runnable_threads": None}, {"runnable_threads": 1.0, "machine_cpus": None}]
)
def test_a_machine_that_does_not_count_is_unknown(unknown: dict[str, float | None]) -> None:
    """No zero is made of it: the node is not eligible, and the reason is there."""
    (node,) = local_snapshot(report(**unknown), "float32", ["a"], 5.0).nodes
    assert isinstance(node.background_utilisation, Unknown)
    assert "what others do" in node.background_utilisation.unknown


def test_however_many_others_there_are_a_little_is_left() -> None:
    """The optimizer divides by it."""
    (node,) = local_snapshot(report(runnable_threads=1e6), "float32", ["a"], 5.0).nodes
    assert isinstance(node.background_utilisation, Known)
    assert node.background_utilisation.value == 0.99
