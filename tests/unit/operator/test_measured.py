"""`up` without cuts: nodes are processes of this machine, and the solver decides on what was measured of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitinfer.operator import cli
from splitinfer.operator.commands import up
from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local.agents import Probed
from splitinfer.operator.local.placing import Options, local_nodes
from splitinfer.operator.local.request import Request, check_request, make_request
from splitinfer.operator.planning.capacity_table import busy
from splitinfer.operator.planning.measured import Measured, Server
from splitinfer.operator.planning.question import HOST_OVERHEAD_BYTES
from splitinfer.operator.spec.resource import SplitInference, resource
from splitinfer.optimizer.capacity import CapacitySnapshot, LinkCapacity, NodeCapacity
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler.node_speeds import Asked
from tests.support.stored import write_index

BLOCKS = 6


def known(value: float) -> Known:
    """A fresh reading."""
    return Known(value=value, age_seconds=0.0, source="test")


def site(*names: str, memory: float = HOST_OVERHEAD_BYTES * 3, **readings: Any) -> CapacitySnapshot:
    """Nodes that are all alike, as processes of one machine are."""
    given = {
        "free_memory_bytes": known(memory),
        "memory_bandwidth_bytes_per_second": known(1e9),
        "flops_per_second": {"float32": known(1e9)},
        "block_overhead_seconds": known(1e-4),
        "step_overhead_seconds": known(1e-3),
        "serialisation_bytes_per_second": known(1e9),
        "background_utilisation": known(0.0),
        **readings,
    }
    links = tuple(
        LinkCapacity(
            from_node=a,
            to_node=b,
            round_trip_seconds=known(1e-4),
            bandwidth_bytes_per_second=known(1e8),
        )
        for a in names
        for b in names
        if a != b
    )
    nodes = tuple(NodeCapacity(name=name, trusted=True, **given) for name in names)
    return CapacitySnapshot(nodes=nodes, links=links)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the model ``tiny``."""
    write_index(tmp_path / "models", "tiny", blocks=BLOCKS)
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    return tmp_path / "models"


def wanted(**spec: Any) -> SplitInference:
    """A manifest for ``tiny``."""
    return resource("test", {"model": {"source": "store://tiny"}, **spec})


def planned(store: Path, *names: str, spec: dict[str, Any] | None = None, **options: Any) -> Request:
    """The request on a machine that was measured as `site` says."""
    given = Options(store=store, capacity=site(*names), measured=True)
    return make_request(wanted(**(spec or {})), dataclasses.replace(given, **options))


def test_the_solver_decides_and_spare_nodes_get_a_process(store: Path) -> None:
    """With a manifest the best plan is served: on equal nodes that is one segment; the others may take over."""
    request = planned(store, "node-0", "node-1")

    assert [str(s) for s in request.plan.segments] == ["node-0[0:6]"]
    assert request.nodes == ("node-0", "node-1")


def test_without_a_manifest_every_node_runs_something(store: Path) -> None:
    """Whoever asks for three processes and nothing else wants to see a model cut in three."""
    request = planned(store, "node-0", "node-1", "node-2", spread=True)

    assert request.plan.nodes == ("node-0", "node-1", "node-2")
    assert [s.node for s in request.plan.segments] == ["node-0", "node-1", "node-2"]


def test_pins_are_kept_and_name_the_nodes(store: Path) -> None:
    """Pins may cover the model, in a U-shape too, or a part of it; the solver places the rest."""
    pins = [
        {"blocks": "0", "node": "near"},
        {"blocks": "1-4", "node": "far"},
        {"blocks": "5", "node": "near"},
    ]
    spec = {"placement": {"pins": pins}}
    names = local_nodes(wanted(**spec), Options(store=store), BLOCKS)
    assert names == ("near", "far", "node-0"), "as many as by default"

    request = planned(store, *names, spec=spec)
    assert [str(s) for s in request.plan.segments] == ["near[0:1]", "far[1:5]", "near[5:6]"]
    request = planned(store, *names, spec={"placement": {"pins": pins[1:2]}})
    assert any(s.node == "far" and s.start <= 1 and s.stop >= 5 for s in request.plan.segments)


@pytest.mark.parametrize(
    ("spec", "options", "field", "words"),
    [
        ({}, {"nodes": 7}, "--nodes", "use at most 6"),
        (
            {"placement": {"pins": [{"blocks": "0", "node": n} for n in "ab"]}},
            {"nodes": 1},
            "--nodes",
            "allow as many",
        ),
        ({}, {"node_engines": {"node-7": "onnx"}}, "--node-engine", "node-0, node-1, node-2"),
    ],
)
def test_nodes_that_cannot_be_are_refused_before_anything_is_measured(
    store: Path, spec: dict[str, Any], options: dict[str, Any], field: str, words: str
) -> None:
    """The field and what mends it."""
    with pytest.raises(UserError) as refused:
        check_request(wanted(**spec), dataclasses.replace(Options(store=store), **options))
    assert refused.value.problems[0][0] == field
    assert words in refused.value.problems[0][1]


def test_what_could_not_be_measured_is_no_plan(store: Path) -> None:
    """The reason is told, and no equal cuts are served instead."""
    unknown = {"float32": Unknown(unknown="the probe failed: no such engine")}
    options = Options(store=store, capacity=site("node-0", flops_per_second=unknown), measured=True)
    with pytest.raises(CommandFailed, match="the probe failed: no such engine"):
        make_request(wanted(), options)


def test_the_solvers_nodes_share_the_memory_of_the_machine(store: Path) -> None:
    """The entry is counted on one of them; with given cuts one share is left for it."""
    assert planned(store, "node-0", "node-1", memory_bytes=1 << 30).memory_limit_bytes == 1 << 29
    options = Options(store=store, cuts=(3,), memory_bytes=1 << 30)
    assert make_request(wanted(), options).memory_limit_bytes == (1 << 30) // 3


def parsed(line: list[str]) -> argparse.Namespace:
    """A command line as `splitinfer` reads it."""
    return cli.build_parser(entry_points(group=cli.GROUP)).parse_args(line)


class FakeAgents:
    """Agents that know a machine, or that it cannot be measured."""

    def __init__(self, found: Callable[[Sequence[str]], CapacitySnapshot]) -> None:
        self.found = found

    async def measured(self, nodes: Sequence[str]) -> CapacitySnapshot:
        """At once."""
        return self.found(nodes)


async def request_of(*line: str) -> Request:
    """What `up` would serve."""
    async with up.prepared(parsed(["up", "--model", "tiny", "--port", "0", *line])) as (request, _):
        return request


async def test_up_measures_for_the_nodes_it_is_asked_for(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, dtype, engine, device, threads and number of nodes reach the agent; the snapshot has the nodes."""
    asked: list[Probed] = []

    @asynccontextmanager
    async def agents(probed: Probed) -> AsyncIterator[FakeAgents]:
        asked.append(probed)
        yield FakeAgents(lambda nodes: site(*nodes, flops_per_second={"int8": known(1e9)}))

    monkeypatch.setattr("splitinfer.operator.local.agents.agents", agents)
    request = await request_of("--nodes", "2", "--dtype", "int8", "--engine", "onnx", "--threads", "3")
    assert request.plan.nodes == ("node-0", "node-1"), "each runs something"
    [probed] = asked
    assert probed.model == request.model
    assert probed.target == {
        "model": "tiny",
        "dtype": "int8",
        "engine": "onnx",
        "device": "cpu",
        "threads": 3,
    }
    assert (probed.asked.model, probed.asked.dtype, probed.asked.engine) == (
        request.model.digest,
        "int8",
        "onnx",
    )
    await request_of("--nodes", "2", "--dtype", "int8")
    assert asked[1].target["cpu_share"] == 2, "as hosts share the machine"
    assert asked[1].asked.engine is None, "whatever auto took"


async def test_what_the_agent_could_not_measure_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan, and its reason."""

    @asynccontextmanager
    async def agents(_probed: Probed) -> AsyncIterator[FakeAgents]:
        yield FakeAgents(lambda nodes: site(*nodes, block_overhead_seconds=Unknown(unknown="no such engine")))

    monkeypatch.setattr("splitinfer.operator.local.agents.agents", agents)
    with pytest.raises(CommandFailed, match="no such engine"):
        await request_of()


async def test_given_cuts_are_not_measured(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything by --check."""

    def agents(_probed: Probed) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("splitinfer.operator.local.agents.agents", agents)
    for cuts in ("3", "equal"):
        assert (await request_of("--cuts", cuts)).plan.blocks == BLOCKS
    assert cli.main(["up", "--model", "tiny", "--port", "0", "--check"]) == 0


@pytest.mark.parametrize("flag", [["--nodes", "2"], ["--cuts", "3"], ["--cuts", "equal"]])
@pytest.mark.parametrize("source", [["--capacity", "SITE"], ["--prometheus", "http://127.0.0.1:9"]])
async def test_nodes_and_cuts_come_from_one_side_only(
    store: Path, source: list[str], flag: list[str]
) -> None:
    """The command line's are at odds with a snapshot, wherever it comes from."""
    path = store.parent / "site.yaml"
    path.write_text(yaml.safe_dump(site("a").model_dump(mode="json", by_alias=True)))
    source = [str(path) if part == "SITE" else part for part in source]
    with pytest.raises(UserError) as refused:
        await request_of(*source, *flag)
    [(named, message)] = refused.value.problems
    assert named == flag[0]
    assert message == f"{source[0]} leaves nodes and cuts to the solver; remove one of the two"


async def test_up_plans_on_what_a_server_says(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for this model, dtype and engine; the plan's nodes are the server's, and its notes are told."""
    asked: list[tuple[Asked, Server]] = []

    def measured(what: Asked, of: Server) -> Measured:
        asked.append((what, of))
        return Measured(site("edge-a", "edge-b"), ("a note",))

    monkeypatch.setattr("splitinfer.operator.planning.measured.measured", measured)
    request = await request_of("--prometheus", "http://p:9090", "--engine", "onnx")
    [(what, of)] = asked
    assert (what.model, what.dtype, what.engine) == (request.model.digest, "float32", "onnx")
    assert of.url == "http://p:9090"
    assert request.nodes == request.plan.nodes
    assert set(request.nodes) <= {"edge-a", "edge-b"}
    assert request.basis is not None
    assert capsys.readouterr().err == "note: a note\n"


async def test_flags_of_a_server_mean_nothing_without_one(store: Path) -> None:
    """They are not passed over."""
    with pytest.raises(UserError, match="--stale-after: is of --prometheus"):
        await request_of("--stale-after", "links=60")


def test_a_machine_that_others_use_is_told(store: Path) -> None:
    """What was measured holds for as long as they do; a little is no news."""
    assert busy(site("a", background_utilisation=known(0.05))) is None
    warning = busy(site("a", "b", background_utilisation=known(0.4)))
    assert warning is not None
    assert "is left 60 % of its speed" in warning
