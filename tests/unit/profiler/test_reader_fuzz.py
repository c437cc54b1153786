"""From the bytes of a server's answers to the snapshot: unknown or a typed error, never a wrong number."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.answers import Sample, Span
from splitinfer.profiler.assembly import assemble
from splitinfer.profiler.inventory import Inventory, inventory
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.prometheus import Prometheus
from splitinfer.profiler.reader import read_snapshot
from splitinfer.profiler.sources import OURS, Gathered, PrometheusSource, SourceError
from tests.support.agent_values import DTYPE, MODEL, PROBE, labelled, link_values, node_values

NOW = 10_000.0
BOUNDS = StaleBounds()
ASKED = Asked(MODEL, DTYPE)
EMPTY = b'{"status":"success","data":{"resultType":"matrix","result":[]}}'


class Canned(Prometheus):
    """A server whose answer to the first question is given: everything but the connection is the real one."""

    def __init__(self, ours: bytes, time: bytes | None = None) -> None:
        self._url = httpx.URL("http://canned:9090")  # no connection: making one reads all certificates
        self._ours = ours
        scalar = {"status": "success", "data": {"resultType": "scalar", "result": [NOW, str(NOW)]}}
        self._time = json.dumps(scalar).encode() if time is None else time

    async def __aexit__(self, *_: object) -> None:
        """There is none."""

    async def _ask(self, query: str, at_seconds: float | None = None) -> bytes:
        if query == "time()":
            return self._time
        assert at_seconds == NOW
        return self._ours if query.startswith(OURS[0]) else EMPTY


def read(ours: bytes, nodes: Inventory | None = None, time: bytes | None = None) -> CapacitySnapshot:
    """What the reader makes of an answer."""

    async def ask() -> CapacitySnapshot:
        async with Canned(ours, time) as client:
            source = PrometheusSource(client, BOUNDS.window_seconds)
            snapshot, _ = await read_snapshot(source, ASKED, nodes or Inventory(), BOUNDS)
            return snapshot

    return asyncio.run(ask())


def answer(rows: list[tuple[dict[str, str], list[tuple[float, float]]]]) -> bytes:
    """As Prometheus writes it."""

    def text(value: float) -> str:
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(str(value), repr(value))

    result = [{"metric": m, "values": [[at, text(v)] for at, v in points]} for m, points in rows]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()


SOUND = {**node_values(), **link_values("b")}
READ_AS = {
    s.NODE_MEMORY: "free_memory_bytes",
    s.PROBE_BANDWIDTH: "memory_bandwidth_bytes_per_second",
    s.PROBE_FLOPS: f"flops_per_second[{DTYPE}]",
    s.PROBE_SERIALISATION: "serialisation_bytes_per_second",
    s.PROBE_STEP_OVERHEAD: "step_overhead_seconds",
    s.PROBE_BLOCK_OVERHEAD: "block_overhead_seconds",
}
"""Series whose values go into the snapshot as they are."""
AGE_OF = {s.NODE_MEMORY: s.NODE_AGE, s.LINK_MEDIAN: s.LINK_AGE, s.LINK_BANDWIDTH: s.LINK_AGE}
BOUND_OF = {s.NODE_AGE: BOUNDS.state, s.PROBE_AGE: BOUNDS.speeds, s.LINK_AGE: BOUNDS.links}
NEVER = (math.nan, math.inf, -math.inf, -1.0, 1e30)
"""No series can have these values, in any unit."""


@dataclass(frozen=True)
class Case:
    """One agent of node a: per series a value or nothing, and how long ago it was scraped."""

    values: Mapping[s.Series, float | None]
    scraped_ago: float
    twin: bool

    def rows(self) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Of the answer; the twin is another agent of the node with other values."""
        found = []
        for i in range(2 if self.twin else 1):
            for series, labels in SOUND:
                value = self.values[series]
                if value is not None:
                    metric = {"__name__": series.name, "instance": f"agent-{i}:1", "job": "agents"}
                    more = 0.0 if series.name.endswith("_age_seconds") else i * 0.5
                    at = NOW - self.scraped_ago
                    points = [(at - 15, value + more), (at, value + more)]
                    found.append((metric | labelled(series, "a", labels), points))
        return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Most series sound, some not, some not there; some scrapes old; sometimes a second agent."""
    values: dict[s.Series, float | None] = {}
    for (series, _), value in SOUND.items():
        kind = draw(st.sampled_from(["sound"] * 8 + ["never", "absent", "old"]))
        is_age = series.name.endswith("_age_seconds")
        if kind == "never":
            values[series] = draw(st.sampled_from(NEVER))
        elif kind == "absent":
            values[series] = None
        elif is_age:
            values[series] = draw(st.floats(0, 2000) if kind == "old" else st.floats(0, 60))
        else:
            values[series] = value
    return Case(values, draw(st.sampled_from([0.0, 5.0, 90.0, 200.0])), draw(st.integers(0, 9)) == 0)


def expected(case: Case, series: s.Series) -> tuple[float, float] | None:
    """Value and age that the snapshot must have of a series; None for unknown. Written from the rules, not from the code."""
    value = case.values[series]
    age_series = AGE_OF.get(series, s.PROBE_AGE)
    age = case.values[age_series]
    told = [v for one, v in case.values.items() if v is not None and not one.name.endswith("_age_seconds")]
    if case.twin and any(abs(v) < 1e15 for v in told):  # the twin's are larger by a half
        return None
    if value is None or value in NEVER or math.isnan(value):
        return None
    if age is None or age in NEVER or math.isnan(age):
        return None
    total = age + case.scraped_ago
    return None if total > BOUND_OF[age_series] else (value, total)


def agrees(reading: Known | Unknown, wanted: tuple[float, float] | None) -> bool:
    """Exactly the value, and its age up to rounding of times; unknown exactly where it must be."""
    if wanted is None:
        return isinstance(reading, Unknown)
    return (
        isinstance(reading, Known)
        and reading.value == wanted[0]
        and math.isclose(reading.age_seconds, wanted[1], abs_tol=1e-6)
    )


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_snapshot_is_what_an_oracle_says(case: Case) -> None:
    """Each reading, known or unknown, its value and its age, over answers with everything that may be wrong in them."""
    snapshot = read(answer(case.rows()), inventory({"nodes": {"a": {}, "b": {}}}))
    readings = dict(snapshot.nodes[0].readings(DTYPE))
    # The block is a part of the check of its overhead alone: it goes into no reading.
    block, over = case.values[s.PROBE_BLOCK_DECODE], case.values[s.PROBE_BLOCK_OVERHEAD]
    assert block is None or over is None or over in NEVER or math.isnan(over) or over < 3e-3
    for series, name in READ_AS.items():
        assert agrees(readings[name], expected(case, series)), (name, readings[name], expected(case, series))
    for link in snapshot.links:
        assert agrees(link.bandwidth_bytes_per_second, expected(case, s.LINK_BANDWIDTH))
        high = case.values[s.LINK_P95]
        if high is not None and math.isfinite(high) and high > 0:
            assert agrees(link.round_trip_seconds, expected(case, s.LINK_MEDIAN))
    assert all(isinstance(reading, Unknown) for _, reading in snapshot.nodes[1].readings(DTYPE))


NAMES = [series.name for series in s.AGENT_SERIES] + [
    "node_memory_MemAvailable_bytes",
    "node_cpu_seconds_total",
    "node_uname_info",
    "kube_node_info",
    "kube_node_labels",
    "kube_node_status_allocatable",
    "kube_pod_container_resource_requests",
    "kube_pod_status_phase",
    "DCGM_FI_DEV_FB_FREE",
]
LABELS: Mapping[str, st.SearchStrategy[str]] = {
    "node": st.sampled_from(["a", "b"]),
    "exported_node": st.sampled_from(["a", "c"]),
    "peer": st.sampled_from(["a", "b", "x" * 300]),
    "instance": st.sampled_from(["h:1", "h:2"]),
    "job": st.sampled_from(["j", "k"]),
    "model": st.sampled_from([MODEL, ""]),
    "dtype": st.just(DTYPE),
    "engine": st.sampled_from(["onnx", "torch"]),
    "device": st.sampled_from(["cpu", "cuda:0"]),
    "version": st.just("1"),
    "cpu": st.sampled_from(["0", "1"]),
    "gpu": st.just("0"),
    "mode": st.sampled_from(["idle", "iowait"]),
    "nodename": st.sampled_from(["a", "b"]),
    "internal_ip": st.just("h"),
    "label_topology_kubernetes_io_zone": st.sampled_from(["z", "z" * 300]),
}
odd = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 1e9, *NEVER]), st.floats(), st.floats(0, 100), st.floats(1e6, 1e12)
)
times = st.floats(0, NOW)
spans = st.none() | st.builds(
    Span, count=st.integers(2, 50), first_at_seconds=times, first_value=odd, fell=st.booleans()
)
soups = st.lists(
    st.builds(
        Sample,
        st.sampled_from(NAMES),
        st.fixed_dictionaries({}, optional=dict(LABELS)),
        odd,
        st.sampled_from([NOW, NOW - 10, NOW - 200]) | times,
        spans,
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(soups)
def test_samples_of_any_kind_give_a_sound_snapshot_or_a_typed_error(soup: list[Sample]) -> None:
    """Nothing else is raised; what is known is finite, not older than its bound, and was said of that node."""
    try:
        snapshot = assemble(Gathered(tuple(soup), NOW), ASKED, Inventory(), BOUNDS)
    except SourceError:
        return
    for node in snapshot.nodes:
        assert not node.trusted
        for _, reading in node.readings(DTYPE):
            if isinstance(reading, Known):
                assert math.isfinite(reading.value)
                assert 0 <= reading.age_seconds <= BOUNDS.speeds
        memory = node.free_memory_bytes
        if isinstance(memory, Known) and memory.source == "agent":
            own = (s.NODE_MEMORY.name, s.NODE_DEVICE_MEMORY.name)
            assert memory.value in {
                x.value
                for x in soup
                if x.name in own and node.name in (x.labels.get("node"), x.labels.get("exported_node"))
            }
    CapacitySnapshot.model_validate(snapshot.model_dump(mode="json", by_alias=True))


@settings(deadline=None)
@given(st.integers(min_value=0), st.booleans())
def test_a_part_of_an_answer_is_none(cut: int, clock: bool) -> None:
    """Wherever it breaks off, of samples or of the time: an error that names the server."""
    whole = answer(Case({series: v for (series, _), v in SOUND.items()}, 5.0, False).rows())
    scalar = b'{"status":"success","data":{"resultType":"scalar","result":[10000.0,"10000.0"]}}'
    part = (scalar if clock else whole)[: cut % len(scalar if clock else whole)]
    with pytest.raises(SourceError, match="http://canned:9090: "):
        read(EMPTY if clock else part, time=part if clock else None)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_bytes_of_any_kind_are_a_typed_error(garbage: bytes, clock: bool) -> None:
    """Whoever answers in the server's place."""
    with pytest.raises(SourceError):
        read(EMPTY if clock else garbage, time=garbage if clock else None)


def test_a_series_that_is_there_twice_is_an_error() -> None:
    """A proxy that merges answers may do it; neither of the two is taken."""
    rows = Case({series: v for (series, _), v in SOUND.items()}, 5.0, False).rows()
    again: Any = [*rows, rows[3]]
    with pytest.raises(SourceError, match="a series is there twice"):
        read(answer(again))


def test_the_oracle_knows_a_sound_case() -> None:
    """Else everything could be unknown and nobody would see it."""
    case = Case({series: v for (series, _), v in SOUND.items()}, 5.0, False)
    assert expected(case, s.NODE_MEMORY) == (4e9, 7.0)
    assert expected(case, s.PROBE_FLOPS) == (5e10, 35.0)
    readings = dict(read(answer(case.rows())).nodes[0].readings(DTYPE))
    assert all(isinstance(reading, Known) for reading in readings.values())
    assert PROBE[:2] == (ASKED.model, ASKED.dtype)
