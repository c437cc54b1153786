"""What other exporters say where the agent says nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.answers import Sample, Span
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.inventory import Inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.others import Other, others_by_node
from splitinfer.profiler.sources import Gathered
from tests.support.agent_values import DTYPE, MODEL, Values, node_values, samples

NOW = 110.0
AT = 100.0
HOST: dict[str, Any] = {"instance": "10.0.0.1:9100", "job": "node"}
MEMORY = "node_memory_MemAvailable_bytes"


def sample(name: str, value: float = 1.0, at: float = AT, **labels: Any) -> Sample:
    """One."""
    return Sample(name, labels, value, at)


def cpu(cpu: str, mode: str, used: float, seconds: float = 60.0, fell: bool = False, **labels: Any) -> Sample:
    """A CPU's time in a mode, from 1,000 s on."""
    span = Span(5, AT - seconds, 1000.0, fell)
    given = {**HOST, "node": "a", "cpu": cpu, "mode": mode, **labels}
    return Sample("node_cpu_seconds_total", given, 1000.0 + used, AT, span)


def others(*of: Sample, now: float = NOW) -> dict[str, Other]:
    """By node."""
    return others_by_node(of, now, StaleBounds())


@pytest.mark.parametrize(
    "more",
    [
        [sample("node_uname_info", **HOST, nodename="a")],
        [sample("kube_node_info", node="a", internal_ip="10.0.0.1", instance="ksm:8080")],
    ],
)
def test_a_series_is_its_nodes_by_label_or_by_address(more: list[Sample]) -> None:
    """What the scrape says of the node first, else who has that address."""
    (found,) = others(sample(MEMORY, 7e9, **HOST), *more).items()
    assert found == ("a", Other(memory=Known(value=7e9, age_seconds=10, source="node_exporter")))
    assert list(others(sample(MEMORY, 7e9, **HOST, node="b"), *more)) == ["b"]
    assert list(others(sample(MEMORY, 7e9, **HOST, node="t", exported_node="c"), *more)) == ["c"]


def test_an_address_that_nobody_or_two_nodes_have_leads_nowhere() -> None:
    """No node is guessed."""
    info = [sample("kube_node_info", node=n, internal_ip="10.0.0.1") for n in ("a", "b")]
    assert others(sample(MEMORY, 7e9, **HOST)) == {}
    assert others(sample(MEMORY, 7e9, **HOST), *info) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_cannot_be_is_unknown(value: float) -> None:
    """With who said it."""
    reading = others(sample(MEMORY, value, **HOST, node="a"))["a"].memory
    assert isinstance(reading, Unknown)
    assert "(node_exporter)" in reading.unknown


def test_two_exporters_of_one_node_contradict_one_another_until_one_is_stale() -> None:
    """Then the other counts."""
    one = sample(MEMORY, 7e9, **HOST, node="a")
    two = sample(MEMORY, 8e9, at=AT - 50, instance="x:1", node="a")
    assert isinstance(others(one, two)["a"].memory, Unknown)
    assert others(one, two, now=AT + 71)["a"].memory == Known(
        value=7e9, age_seconds=71, source="node_exporter"
    )
    assert isinstance(others(one, two, now=AT + 121)["a"].memory, Unknown)


def test_busy_cpus_are_what_did_not_idle_over_the_window() -> None:
    """Waiting for I/O is idle; all CPUs are summed."""
    found = others(cpu("0", "idle", 30), cpu("0", "iowait", 15), cpu("1", "idle", 0), cpu("1", "iowait", 0))
    reading = found["a"].busy
    assert isinstance(reading, Known)
    assert reading.model_dump() == pytest.approx(
        {"value": 1.25, "age_seconds": 10, "source": "node_exporter"}
    )
    assert found["a"].cpus == 2


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ([cpu("0", "idle", 30, fell=True)], "went back"),
        ([cpu("0", "idle", 90)], "idled 1.50 of the time"),
        ([cpu("0", "iowait", 30)], "does not say how long"),
        ([cpu("0", "idle", 30), cpu("0", "idle", 31, extra="x")], "more than once"),
        ([cpu("0", "idle", 30), cpu("1", "idle", 31, instance="y:1")], "more than one exporter"),
        (
            [sample("node_cpu_seconds_total", 5, **HOST, node="a", cpu="0", mode="idle")],
            "only once in the window",
        ),
        ([cpu("0", "idle", math.nan)], "idled nan of the time"),
    ],
)
def test_idle_times_that_make_no_share_are_unknown(of: list[Sample], why: str) -> None:
    """A counter that was started anew, more idle time than time, a CPU without one, two at once, one sample."""
    reading = others(*of)["a"].busy
    assert isinstance(reading, Unknown)
    assert why in reading.unknown


def test_memory_is_at_most_what_the_scheduler_would_give() -> None:
    """Less than is free where pods asked for more than they use; pods that ended ask for nothing, and alone it is no measurement."""
    kube: dict[str, Any] = {"instance": "ksm:8080", "node": "a", "resource": "memory"}
    pod = {**kube, "namespace": "n", "container": "c"}
    room = [
        sample("kube_node_status_allocatable", 10e9, **kube),
        sample("kube_pod_container_resource_requests", 4e9, **pod, pod="runs"),
        sample("kube_pod_container_resource_requests", 5e9, **pod, pod="ended"),
        sample("kube_pod_status_phase", 1, namespace="n", pod="ended", phase="Succeeded"),
        sample("kube_pod_status_phase", 0, namespace="n", pod="runs", phase="Failed"),
    ]
    free = sample(MEMORY, 7e9, **HOST, node="a")
    assert others(free, *room)["a"].memory == Known(value=6e9, age_seconds=10, source="kube-state-metrics")
    less = sample(MEMORY, 5e9, **HOST, node="a")
    assert others(less, *room)["a"].memory == Known(value=5e9, age_seconds=10, source="node_exporter")
    assert others(*room) == {}


def node(values: Values, *more: Sample) -> dict[str, Known | Unknown]:
    """The readings of a node of which an agent and others speak."""
    of = Gathered((*samples("a", values), *more), NOW)
    snapshot = assemble(of, Asked(MODEL, DTYPE), Inventory(), StaleBounds())
    return dict(snapshot.nodes[0].readings(DTYPE))


def test_others_are_asked_only_where_the_agent_says_nothing() -> None:
    """What it says wrongly is not mended by them: who cannot measure one thing is not believed by halves."""
    other = [sample(MEMORY, 7e9, **HOST, node="a"), cpu("0", "idle", 0), cpu("1", "idle", 0)]
    values = node_values()
    assert node(values, *other) == node(values)
    silent = {
        key: value
        for key, value in values.items()
        if key[0] not in (s.NODE_MEMORY, s.NODE_RUNNABLE, s.NODE_CPU_BUSY, s.NODE_MACHINE_CPUS)
    }
    found = node(silent, *other)
    assert found["free_memory_bytes"] == Known(value=7e9, age_seconds=10, source="node_exporter")
    # 2 CPUs, both busy: two threads of others and two of ours take turns.
    assert found["background_utilisation"] == Known(value=0.5, age_seconds=10, source="node_exporter")
    wrong = node({**values, (s.NODE_MEMORY, ()): math.nan, (s.NODE_RUNNABLE, ()): -1.0}, *other)
    assert isinstance(wrong["free_memory_bytes"], Unknown)
    assert isinstance(wrong["background_utilisation"], Unknown)


def test_a_gpus_memory_comes_from_dcgm_in_mebibytes() -> None:
    """Of several the fullest, because their numbers need not be those of hosts; the machine's memory is never taken for it."""
    values = node_values()
    del values[s.NODE_INFO, ("0.1.0", "cpu")]
    values[s.NODE_INFO, ("0.1.0", "cuda:1")] = 1
    gpus = [
        sample("DCGM_FI_DEV_FB_FREE", 2000, gpu="0", Hostname="a", instance="d:9400"),
        sample("DCGM_FI_DEV_FB_FREE", 1000, gpu="1", Hostname="a", instance="d:9400"),
    ]
    for order in (gpus, gpus[::-1]):
        assert node(values, *order)["free_memory_bytes"] == Known(
            value=1000 * 1024 * 1024, age_seconds=10, source="dcgm"
        )
    lost = sample("DCGM_FI_DEV_FB_FREE", math.nan, gpu="2", Hostname="a", instance="d:9400")
    assert isinstance(node(values, *gpus, lost)["free_memory_bytes"], Unknown)
    assert isinstance(node(values, sample(MEMORY, 7e9, **HOST, node="a"))["free_memory_bytes"], Unknown)


def test_the_zone_is_the_site_and_no_other_label_counts() -> None:
    """Least of all one of trust: a node sets its labels itself."""
    labels: dict[str, Any] = {
        "label_topology_kubernetes_io_zone": "z1",
        "label_splitinfer_dev_trust": "trusted",
    }
    of = Gathered((*samples("a", node_values()), sample("kube_node_labels", node="a", **labels)), NOW)
    (found,) = assemble(of, Asked(MODEL, DTYPE), Inventory(), StaleBounds()).nodes
    assert (found.site, found.labels, found.trusted) == ("z1", {}, False)
