"""The agent of this machine: its snapshot as that of the nodes that run on it, and what `status` tells of it."""

from __future__ import annotations

from typing import Any

import pytest

from splitinfer.operator.local.machine_lines import facts_of, lines
from splitinfer.operator.local.machine_snapshot import FAR, MACHINE, missing, over_nodes
from splitinfer.optimizer.access import NodeAccess
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.series import Series
from tests.unit.operator.test_measured import known, site


def machine(**readings: Any) -> CapacitySnapshot:
    """As the reader assembles it from the one agent."""
    return site(MACHINE, FAR, **readings)


def test_each_node_has_the_machines_speeds_and_a_part_of_its_memory() -> None:
    """Links between all of them are the one that was probed; whoever owns the machine trusts all."""
    taken = machine(free_memory_bytes=known(3001.0))
    found = over_nodes(taken, ("a", "b", "c"))

    assert [node.name for node in found.nodes] == ["a", "b", "c"]
    for node in found.nodes:
        assert node.free_memory_bytes == known(1000.0)
        assert node.memory_bandwidth_bytes_per_second == taken.nodes[0].memory_bandwidth_bytes_per_second
        assert node.trusted
        assert node.labels == {"splitinfer.dev/trust": "trusted"}
    assert len(found.links) == 6
    [probed] = [k for k in taken.links if (k.from_node, k.to_node) == (MACHINE, FAR)]
    assert {link.round_trip_seconds for link in found.links} == {probed.round_trip_seconds}


def test_what_was_estimated_of_the_two_processes_is_not_said_of_nodes() -> None:
    """The snapshot is one that can be written to a file and read again."""
    access = NodeAccess(node=FAR, round_trip_seconds=known(1e-4))
    found = over_nodes(machine().model_copy(update={"access": (access,)}), ("a", "b"))
    assert CapacitySnapshot.model_validate_json(found.model_dump_json()) == found
    assert found.access == ()


def test_unknown_memory_stays_unknown() -> None:
    """And is divided by nobody."""
    lost = Unknown(unknown="the machine does not say")
    assert over_nodes(machine(free_memory_bytes=lost), ("a",)).nodes[0].free_memory_bytes == lost


def test_what_is_missing_is_named_until_all_is_there() -> None:
    """One reading, the link, or everything where the agent has said nothing."""
    assert missing(machine(), "float32") == []
    lost = machine(step_overhead_seconds=Unknown(unknown="no probe"))
    assert missing(lost, "float32") == ["step_overhead_seconds: no probe"]
    assert len(missing(machine(), "int8")) == 1, "probed in another dtype"
    unlinked = machine().model_copy(update={"links": ()})
    assert [line.partition(":")[0] for line in missing(unlinked, "float32")] == [
        "the link between two processes"
    ]
    assert len(missing(site("other"), "float32")) == 8


def test_the_agents_own_reason_takes_the_readers_place() -> None:
    """Of the speeds that are unknown; what is known stays."""
    lost = Unknown(unknown="no probe of this model")
    taken = machine(
        block_overhead_seconds=lost, flops_per_second={"float32": lost}, background_utilisation=lost
    )
    [node] = over_nodes(taken, ("a",), "no such engine").nodes
    assert (
        node.block_overhead_seconds == node.flops_per_second["float32"] == Unknown(unknown="no such engine")
    )
    assert node.background_utilisation == lost
    assert isinstance(node.step_overhead_seconds, Known)


def sample(series: Series, value: float) -> Sample:
    """One that the agent exports."""
    return Sample(series.name, {"node": MACHINE}, value, 0.0)


def test_status_tells_load_and_calibration() -> None:
    """By name in JSON, in two lines for a person; what the agent does not know is unknown, not zero."""
    said = [
        sample(s.NODE_CPU_BUSY, 0.33),
        sample(s.NODE_RUNNABLE, 0.7),
        sample(s.NODE_SERVING, 0.72),
        sample(s.NODE_AGE, 6.0),
        sample(s.PROBE_AGE, 43.0),
        sample(s.PROBE_CALIBRATION, 0.97),
        sample(s.PROBE_CALIBRATION_AGE, 5.0),
    ]
    assert facts_of(said)["calibration_ratio"] == 0.97
    assert lines(facts_of(said)) == [
        "machine: others take 33 % of the CPUs with 0.7 threads, hosts compute 72 % of the time (6 s ago)",
        "calibration: probed 43 s ago; live steps took 0.97 x the probe's prediction, 5 s ago",
    ]
    assert lines(facts_of(said[:1])) == [
        "machine: others take 33 % of the CPUs with unknown threads, hosts compute unknown of the time (unknown ago)",
        "calibration: probed unknown ago; live steps took no part in it yet",
    ]


@pytest.mark.parametrize("why", ["no agent runs: the plan was given", "no agent answers"])
def test_no_agent_is_told_with_its_reason(why: str) -> None:
    """In place of figures."""
    assert lines(why) == [f"machine: {why}"]
