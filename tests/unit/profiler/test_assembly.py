"""From samples to the snapshot: every value with its age and source, or unknown with its reason."""

from __future__ import annotations

import math
from typing import Any

import pytest

from splitinfer.optimizer.capacity import CapacitySnapshot, NodeCapacity
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.inventory import Inventory, InventoryError, inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.sources import Gathered, SourceError
from tests.support.agent_values import (
    DTYPE,
    MODEL,
    PROBE,
    Values,
    link_values,
    node_values,
    probe_values,
    samples,
)

NOW = 110.0
ASKED = Asked(MODEL, DTYPE)
NOBODY = Inventory()
SPEEDS = (
    "memory_bandwidth_bytes_per_second",
    "block_overhead_seconds",
    "step_overhead_seconds",
    "serialisation_bytes_per_second",
    f"flops_per_second[{DTYPE}]",
)


def taken(
    *of: tuple[Sample, ...], asked: Asked = ASKED, nodes: Inventory = NOBODY, now: float = NOW
) -> CapacitySnapshot:
    """The snapshot of these samples."""
    return assemble(Gathered(tuple(x for one in of for x in one), now), asked, nodes, StaleBounds())


def only(snapshot: CapacitySnapshot) -> NodeCapacity:
    """Its one node."""
    (node,) = snapshot.nodes
    return node


def readings(node: NodeCapacity) -> dict[str, Known | Unknown]:
    """By name."""
    return dict(node.readings(DTYPE))


def reasons(node: NodeCapacity) -> dict[str, str]:
    """Why what is unknown is unknown."""
    return {n: r.unknown for n, r in readings(node).items() if isinstance(r, Unknown)}


def with_one(series: s.Series, value: float | None, labels: tuple[str, ...] = ()) -> Values:
    """A node's values with one other; None withdraws it."""
    values = {**node_values()}
    if value is None:
        del values[series, labels]
    else:
        values[series, labels] = value
    return values


def test_each_value_has_its_age_and_its_source() -> None:
    """Since the scrape, and what the agent's own clock said then."""
    node = only(taken(samples("a", node_values(runnable=3))))
    found = readings(node)
    assert reasons(node) == {}
    assert found["free_memory_bytes"] == Known(value=4e9, age_seconds=12, source="agent")
    assert found["memory_bandwidth_bytes_per_second"] == Known(value=8e9, age_seconds=40, source="agent")
    # 4 CPUs, 3 threads of others, 2 of ours: each of ours is beside 3 / 4 of another.
    assert found["background_utilisation"].model_dump() == pytest.approx(
        {"value": 3 / 7, "age_seconds": 12, "source": "agent"}
    )


def test_nobody_is_trusted_by_its_own_word() -> None:
    """Labels of samples make no labels of nodes; the inventory says site, labels and trust."""
    target: dict[str, Any] = {"splitinfer_dev_trust": "trusted", "trusted": "true", "site": "x"}
    stranger = only(taken(samples("a", node_values(), **target)))
    assert (stranger.trusted, stranger.trust, stranger.labels, stranger.site) == (False, None, {}, None)
    entry = {"site": "berlin", "labels": {"k": "v"}, "trusted": True, "trust": 0.5}
    known = only(taken(samples("a", node_values()), nodes=inventory({"nodes": {"a": entry}})))
    assert (known.trusted, known.trust, known.labels, known.site) == (True, 0.5, {"k": "v"}, "berlin")


def test_a_node_of_the_inventory_that_nobody_speaks_for_is_there_and_unknown() -> None:
    """A person sees that it is missing, and a link to it is no error."""
    snapshot = taken(
        samples("a", {**node_values(), **link_values("b"), **link_values("c")}),
        nodes=inventory({"nodes": {"b": {}}}),
    )
    assert [node.name for node in snapshot.nodes] == ["a", "b"]
    assert set(reasons(snapshot.nodes[1]).values()) == {
        "no agent speaks for this node",
        "no probe says with how many threads: no agent speaks for this node",
    }
    assert [(link.from_node, link.to_node) for link in snapshot.links] == [("a", "b")]


def test_nothing_at_all_is_an_error_and_no_snapshot() -> None:
    """A snapshot without nodes would look like a cluster without nodes."""
    with pytest.raises(SourceError, match="no agent was scraped in the last 240 s"):
        taken((Sample("up", {}, 1.0, 100.0),))
    many = tuple(x for i in range(2001) for x in samples(f"n{i}", {(s.NODE_AGE, ()): 1.0}))
    with pytest.raises(SourceError, match="2,001 nodes"):
        taken(many)


@pytest.mark.parametrize(
    "given",
    [
        {"nodes": {"a": {"trusted": "maybe"}}},
        {"nodes": {"a": {"truste": True}}},
        {"nodes": {"a": {"labels": {"k": 1}}}},
        {"nodes": {"a": {"trust": 2}}},
        {"nodes": []},
        {"node": {}},
        [],
        None,
    ],
)
def test_an_inventory_that_cannot_be_used_is_refused_by_field(given: Any) -> None:
    """Never an entry less."""
    with pytest.raises(InventoryError) as caught:
        inventory(given)
    field, words = caught.value.problems[0]
    assert field.startswith(("nodes", "node", "value")), field
    assert words


@pytest.mark.parametrize(
    ("series", "labels", "value", "lost", "why"),
    [
        (s.NODE_MEMORY, (), math.nan, "free_memory_bytes", "is NaN"),
        (s.NODE_MEMORY, (), math.inf, "free_memory_bytes", "is infinite"),
        (s.NODE_MEMORY, (), -1, "free_memory_bytes", "is -1"),
        (s.NODE_MEMORY, (), None, "free_memory_bytes", "does not say"),
        (s.NODE_RUNNABLE, (), -0.5, "background_utilisation", "is -0.5"),
        (s.NODE_MACHINE_CPUS, (), 0, "background_utilisation", "is 0"),
        (s.NODE_MACHINE_CPUS, (), 2.5, "background_utilisation", "no whole number"),
        (s.PROBE_THREADS, PROBE, 0, "background_utilisation", "is 0"),
        (s.PROBE_BANDWIDTH, PROBE, 0, "memory_bandwidth_bytes_per_second", "is 0"),
        (s.PROBE_BANDWIDTH, PROBE, 8.5, "memory_bandwidth_bytes_per_second", "is its unit right?"),
        (s.PROBE_FLOPS, PROBE, 50, f"flops_per_second[{DTYPE}]", "is its unit right?"),
        (s.PROBE_STEP_OVERHEAD, PROBE, 120, "step_overhead_seconds", "is its unit right?"),
        (s.PROBE_SERIALISATION, PROBE, -math.inf, "serialisation_bytes_per_second", "is infinite"),
    ],
)
def test_what_cannot_be_is_unknown_with_the_reason_and_nothing_else_is(
    series: s.Series, labels: tuple[str, ...], value: float | None, lost: str, why: str
) -> None:
    """NaN, infinite, negative, zero where no zero can be, of another unit, withdrawn."""
    found = reasons(only(taken(samples("a", with_one(series, value, labels)))))
    assert set(found) == {lost}
    assert why in found[lost]


def test_a_ratio_of_85_is_no_ratio() -> None:
    """Where the busy share is all there is: a percentage is unknown, and not a machine without a CPU left."""
    values = with_one(s.NODE_RUNNABLE, None)
    values[s.NODE_CPU_BUSY, ()] = 0.75
    # 3 of 4 CPUs are busy: at least three threads want to run.
    assert readings(only(taken(samples("a", values))))["background_utilisation"].model_dump()[
        "value"
    ] == pytest.approx(3 / 7)
    values[s.NODE_CPU_BUSY, ()] = 85
    assert "is its unit right?" in reasons(only(taken(samples("a", values))))["background_utilisation"]


def test_without_its_age_a_value_is_unknown() -> None:
    """However fresh the scrape: the agent may have kept it for hours."""
    found = reasons(only(taken(samples("a", with_one(s.NODE_AGE, None)))))
    assert "its age is not known" in found["free_memory_bytes"]
    found = reasons(only(taken(samples("a", with_one(s.PROBE_AGE, math.nan, PROBE)))))
    assert {name for name in found if name in SPEEDS} == set(SPEEDS)


def test_stale_is_unknown_by_the_bound_of_its_kind() -> None:
    """A node that died: its state first, its speeds later; one second decides."""
    values = samples("a", {**node_values(), **link_values("b")}), samples("b", node_values())
    assert reasons(taken(*values, now=100 + 118).nodes[0]) == {}
    late = reasons(taken(*values, now=100 + 119).nodes[0])
    assert set(late) == {"free_memory_bytes", "background_utilisation"}
    assert late["free_memory_bytes"] == "stale: 121 s old, at most 120 s (agent)"
    assert not set(reasons(taken(*values, now=100 + 570).nodes[0])) & set(SPEEDS)
    assert set(reasons(taken(*values, now=100 + 571).nodes[0])) > set(SPEEDS)
    link = taken(*values, now=100 + 890).links[0]
    assert isinstance(link.round_trip_seconds, Known)
    assert isinstance(taken(*values, now=100 + 891).links[0].bandwidth_bytes_per_second, Unknown)


def test_a_time_that_is_not_yet_makes_nothing_younger_than_new() -> None:
    """A sample from a server whose clock was set back."""
    found = readings(only(taken(samples("a", node_values(), at=NOW + 50))))
    assert found["free_memory_bytes"].model_dump()["age_seconds"] == 2


def test_the_snapshot_has_the_bounds_that_it_was_made_with() -> None:
    """So that it goes on ageing by them."""
    snapshot = taken(samples("a", node_values()))
    bounds = StaleBounds()
    assert (snapshot.taken_at_seconds, snapshot.stale_after_seconds) == (NOW, bounds.state)
    assert snapshot.speeds_stale_after_seconds == bounds.speeds
    assert snapshot.links_stale_after_seconds == bounds.links


def test_links_are_ordered_pairs_with_ages_of_their_own() -> None:
    """A bad reading of one says nothing of the other."""
    a = samples("a", {**node_values(), **link_values("b", bandwidth=2e8)})
    b = samples("b", {**node_values(), **link_values("a", bandwidth=0, trip=20, p95=3)})
    there, back = taken(a, b).links
    assert (there.from_node, there.to_node) == ("a", "b")
    assert there.round_trip_seconds == Known(value=1e-3, age_seconds=20, source="agent")
    assert there.bandwidth_bytes_per_second == Known(value=2e8, age_seconds=20, source="agent")
    assert isinstance(back.bandwidth_bytes_per_second, Unknown)
    assert isinstance(back.round_trip_seconds, Unknown)
    assert "below the median" in back.round_trip_seconds.unknown


def test_speeds_are_those_of_the_asked_model_dtype_and_engine() -> None:
    """Another model's are not used; where two engines were probed, one must be named."""
    values = {**node_values(), **probe_values((MODEL, DTYPE, "torch"), bandwidth=9e9)}
    values |= probe_values((MODEL, "int8", "onnx"), bandwidth=1e9)
    values |= probe_values(("e" * 64, DTYPE, "onnx"), bandwidth=2e9)
    both = reasons(only(taken(samples("a", values))))
    assert both["memory_bandwidth_bytes_per_second"] == "probed with onnx and torch; name the engine"
    for asked, value in (
        (Asked(MODEL, DTYPE, "torch"), 9e9),
        (Asked(MODEL, "int8"), 1e9),
        (Asked("e" * 64, DTYPE), 2e9),
    ):
        node = only(taken(samples("a", values), asked=asked))
        assert node.memory_bandwidth_bytes_per_second == Known(value=value, age_seconds=40, source="agent")
        assert set(node.flops_per_second) == {asked.dtype}
    for asked, why in (
        (Asked("f" * 64, DTYPE), "no probe of model ffffffffffff"),
        (Asked(MODEL, "int4"), "no probe in int4, only in float32, int8"),
        (Asked(MODEL, "int8", "torch"), "no probe with torch, only with onnx"),
    ):
        node = only(taken(samples("a", values), asked=asked))
        assert isinstance(node.memory_bandwidth_bytes_per_second, Unknown)
        assert why in node.memory_bandwidth_bytes_per_second.unknown


def calibrated(ratio: float, age: float, probe_age: float = 30.0) -> NodeCapacity:
    """A node whose live steps took ``ratio`` times what its probe predicts."""
    values = {**node_values(), **probe_values(age=probe_age)}
    values[s.PROBE_CALIBRATION, PROBE] = ratio
    values[s.PROBE_CALIBRATION_AGE, PROBE] = age
    return only(taken(samples("a", values)))


def test_live_steps_correct_the_probe_and_renew_it() -> None:
    """Every part of a step's time grows by the ratio; a node that serves is not probed, and not unknown for it."""
    found = readings(calibrated(2.0, age=5.0, probe_age=5000.0))
    assert {name: r.model_dump()["age_seconds"] for name, r in found.items() if name in SPEEDS} == (
        dict.fromkeys(SPEEDS, 15.0)
    )
    values = {name: r.model_dump()["value"] for name, r in found.items()}
    assert values["memory_bandwidth_bytes_per_second"] == 4e9
    assert values[f"flops_per_second[{DTYPE}]"] == 2.5e10
    assert (values["block_overhead_seconds"], values["step_overhead_seconds"]) == (4e-4, 2e-3)
    assert values["serialisation_bytes_per_second"] == 1e9


def test_an_old_calibration_corrects_nothing_and_a_wrong_one_leaves_nothing_known() -> None:
    """The probe alone counts again when no step was seen for long; nonsense is no reason to believe the probe."""
    old = readings(calibrated(2.0, age=5000.0))["memory_bandwidth_bytes_per_second"]
    assert old == Known(value=8e9, age_seconds=40, source="agent")
    for ratio, age in ((0.0, 5.0), (math.nan, 5.0), (1000.0, 5.0), (2.0, math.nan)):
        assert set(reasons(calibrated(ratio, age))) == set(SPEEDS)


def test_a_part_that_is_more_than_its_whole_contradicts_it() -> None:
    """A block's overhead against the block."""
    found = reasons(only(taken(samples("a", with_one(s.PROBE_BLOCK_OVERHEAD, 0.004, PROBE)))))
    assert set(found) == set(SPEEDS)


def test_the_memory_of_a_gpu_is_not_that_of_the_machine() -> None:
    """Nor the other way round: the device that hosts use decides."""
    values = node_values()
    del values[s.NODE_INFO, ("0.1.0", "cpu")]
    values[s.NODE_INFO, ("0.1.0", "cuda:0")] = 1
    assert "device_memory" in reasons(only(taken(samples("a", values))))["free_memory_bytes"]
    values[s.NODE_DEVICE_MEMORY, ()] = 2e10
    assert readings(only(taken(samples("a", values))))["free_memory_bytes"].model_dump()["value"] == 2e10
