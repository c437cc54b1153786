"""`splitinfer plan` and `up --capacity`: from manifest, model and snapshot to a plan, a refusal, or a named mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitinfer.operator import cli
from splitinfer.operator.errors import CommandFailed, UserError
from splitinfer.operator.local.models import find_model
from splitinfer.operator.local.placing import Options
from splitinfer.operator.local.request import make_request
from splitinfer.operator.planning.graph import graph_of
from splitinfer.operator.planning.question import HOST_OVERHEAD_BYTES, make_question
from splitinfer.operator.planning.snapshot import load_snapshot, parse_snapshot
from splitinfer.operator.spec.resource import resource
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.wanted import Workload
from tests.support.stored import write_index

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples" / "capacity").glob("*.yaml"))


def snapshot_text(**first: Any) -> str:
    """Two nodes, one trusted by label, with changes to the first."""
    node = {
        "site": "s",
        "freeMemoryBytes": HOST_OVERHEAD_BYTES * 3,
        "memoryBandwidthBytesPerSecond": 1_000_000_000,
        "flopsPerSecond": {"float32": 1_000_000_000},
        "blockOverheadSeconds": 0.0001,
        "stepOverheadSeconds": 0.001,
        "serialisationBytesPerSecond": 1_000_000_000,
        "backgroundUtilisation": 0.0,
    }
    near = {"name": "near", "labels": {"trust": "yes"}, "trusted": True, **node, **first}
    far = {"name": "far", "labels": {"edge": ""}, **node, "memoryBandwidthBytesPerSecond": 9_000_000_000}
    link = {"fromSite": "s", "toSite": "s", "roundTripSeconds": 0.0001, "bandwidthBytesPerSecond": 1e8}
    return yaml.safe_dump({"nodes": [near, far], "siteLinks": [link]})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the model ``tiny`` of 6 blocks, and a snapshot ``site.yaml``."""
    write_index(tmp_path / "models", "tiny", blocks=6)
    (tmp_path / "site.yaml").write_text(snapshot_text())
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path))
    return tmp_path


def manifest(home: Path, **spec: Any) -> Path:
    """A manifest for ``tiny``."""
    path = home / "m.yaml"
    given = {"model": {"source": "store://tiny"}, **spec}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "splitinfer.dev/v1alpha1",
                "kind": "SplitInference",
                "metadata": {"name": "m"},
                "spec": given,
            }
        )
    )
    return path


def plan(home: Path, path: Path, *more: str) -> int:
    """Run the command."""
    return cli.main(["plan", "-f", str(path), "--capacity", str(home / "site.yaml"), *more])


SENSITIVE = {"sensitiveBlocks": ["0", "5"], "trustedNodes": {"matchLabels": {"trust": "yes"}}}


def test_a_plan_is_printed_with_bound_and_gap(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON for programs: plan, predictions, bound, gap, alternatives; exit code 0."""
    code = plan(home, manifest(home, privacy=SENSITIVE), "-o", "json", "--explain", "--seconds", "60")
    data = json.loads(capsys.readouterr().out)
    assert code == 0
    assert data["feasible"]
    assert data["status"] == "optimal"
    assert data["gapPercent"] == 0
    assert data["entry"] == "near"
    assert data["segments"][0]["node"] == "near"
    assert data["segments"][-1]["node"] == "near"
    assert data["bound"] == data["cost"]
    assert set(data["predicted"]) == {
        "ttftMilliseconds",
        "tpotMilliseconds",
        "tokensPerSecond",
        "utilizationPercent",
        "exposurePercent",
    }
    assert {"one node", "equal split", "memory-proportional split", "greedy"} <= set(data["alternatives"])


@pytest.mark.parametrize("form", ["table", "yaml"])
def test_every_form_names_the_plan(home: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The table and YAML carry the same plan."""
    assert plan(home, manifest(home), "-o", form) == 0
    assert "near" in capsys.readouterr().out


def test_without_a_plan_the_exit_code_is_1_and_the_reason_names_what_gives_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No room on the trusted node: refusal on stderr, with changes that were solved."""
    (home / "site.yaml").write_text(snapshot_text(freeMemoryBytes=HOST_OVERHEAD_BYTES // 2))
    assert plan(home, manifest(home, privacy=SENSITIVE)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: No plan: ")
    assert "free " in error
    assert "label far trusted" in error
    assert plan(home, manifest(home, privacy=SENSITIVE), "-o", "json") == 1
    data = json.loads(capsys.readouterr().out)
    assert not data["feasible"]
    assert data["changes"]


def test_hard_objectives_refuse_what_soft_ones_allow(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An objective that nothing meets only shows without ``--hard-slo``."""
    path = manifest(home, slo={"tpotMilliseconds": 1})
    assert plan(home, path) == 0
    assert plan(home, path, "--hard-slo") == 1
    assert "TPOT of at most 1 ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"placement": {"pins": [{"blocks": "0-9", "node": "near"}]}}, "spec.placement.pins[0].blocks"),
        ({"placement": {"pins": [{"blocks": "0", "node": "other"}]}}, "spec.placement.pins[0].node"),
        (
            {"placement": {"pins": [{"blocks": "0-1", "node": "near"}, {"blocks": "1", "node": "far"}]}},
            "spec.placement.pins[1]",
        ),
        ({"placement": {"tolerations": []}}, "spec.placement.tolerations"),
        (
            {
                "privacy": {
                    "sensitiveBlocks": ["7"],
                    "trustedNodes": {"matchLabels": {"trust": "yes"}},
                }
            },
            "spec.privacy.sensitiveBlocks",
        ),
    ],
)
def test_a_wrong_manifest_names_the_field(
    home: Path, spec: dict[str, Any], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pin past the model, to an unknown node, or twice; what is not honoured: exit code 2."""
    assert plan(home, manifest(home, **spec)) == 2
    assert capsys.readouterr().err.startswith(f"error: {field}: ")


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        (snapshot_text(memoryBandwidthBytesPerSecond=-1), "nodes[0].memoryBandwidthBytesPerSecond", "below"),
        (snapshot_text(freeMemoryBytes=float("nan")), "nodes[0].freeMemoryBytes", "not a number"),
        (snapshot_text(backgroundUtilisation=1.5), "nodes[0].backgroundUtilisation", "below 1"),
        (snapshot_text(memoryBandwidthBytesPerSecond=0), "nodes[0].memoryBandwidthBytesPerSecond", "unknown"),
        (snapshot_text(name="far"), "nodes[1].name", "twice"),
        (snapshot_text(colour="red"), "nodes[0].colour", "no such field"),
        (snapshot_text(freeMemoryBytes="much"), "nodes[0].freeMemoryBytes", "must be a number"),
        ("nodes: []", "nodes", "no node"),
        (yaml.safe_dump({"nodes": [{"name": f"n{i}"} for i in range(10_000)]}), "nodes", "10,000 nodes"),
        ("nodes: [{name: a}]\nlinks: [{fromNode: a, toNode: b}]", "links[0].toNode", "no node 'b'"),
        ("nodes: [{name: a}]\nlinks: [{fromNode: a, toNode: a}]", "links[0].toNode", "itself"),
        (
            "nodes: [{name: a}, {name: b}]\nlinks: [{fromNode: a, toNode: b, bandwidthBytesPerSecond: -5}]",
            "links[0].bandwidthBytesPerSecond",
            "below",
        ),
    ],
)
def test_a_wrong_snapshot_names_the_field(text: str, field: str, words: str) -> None:
    """Every kind of mistake, at its path."""
    with pytest.raises(UserError) as refused:
        parse_snapshot(text)
    (found, message), *_ = refused.value.problems
    assert found.startswith(f"capacity.{field}")
    assert words in message


@pytest.mark.parametrize(("text", "words"), [("[1]", "mapping"), ("a: [", "not YAML"), ("", "0 documents")])
def test_what_is_no_snapshot_is_refused(text: str, words: str) -> None:
    """Not a mapping, not YAML, nothing."""
    with pytest.raises(UserError, match=words):
        parse_snapshot(text)


def test_a_reading_is_a_number_or_unknown_or_has_age_and_source() -> None:
    """Three ways to write one, and numbers that YAML takes for text."""
    reading = {"value": 5, "ageSeconds": 3, "source": "agent"}
    for given, value in ((7, 7.0), ("8e-05", 8e-05), (reading, 5.0), ("unknown", None), (None, None)):
        node = parse_snapshot(snapshot_text(blockOverheadSeconds=given)).nodes[0]
        assert getattr(node.block_overhead_seconds, "value", None) == value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_site_has_a_plan(path: Path, home: Path) -> None:
    """The snapshots in examples/capacity are read, and a plan for a small model is found on each."""
    model = find_model("store://tiny", home / "models", "model")
    wanted = resource("t", {"model": {"source": "store://tiny"}, "privacy": SENSITIVE})
    snapshot = load_snapshot(path)
    assert any(node.trusted for node in snapshot.nodes)
    labelled = {node.name for node in snapshot.nodes if node.labels.get("splitinfer.dev/trust") == "trusted"}
    assert labelled == {node.name for node in snapshot.nodes if node.trusted}
    question = make_question(wanted, model, snapshot, 64, "float32")
    assert question.constraints.sensitive_blocks == (0, 5)


def test_there_are_five_example_sites() -> None:
    """From four nodes to 128."""
    assert sorted(len(load_snapshot(path).nodes) for path in EXAMPLES) == [4, 4, 8, 40, 128]


def up(home: Path, spec: dict[str, Any] | None = None, **options: Any) -> Any:
    """The request of `up` with the snapshot."""
    capacity: CapacitySnapshot = load_snapshot(home / "site.yaml")
    wanted = resource("t", {"model": {"source": "store://tiny"}, **(spec or {})})
    return make_request(wanted, Options(store=home / "models", capacity=capacity, **options))


def test_up_serves_the_solvers_plan(home: Path) -> None:
    """In place of equal cuts: sensitive ends on the trusted node, a process for each node of the plan."""
    request = up(home, {"privacy": SENSITIVE, "slo": {"tpotMilliseconds": 50}, "objective": {"latency": 1}})
    assert request.plan.segments[0].node == "near"
    assert request.plan.segments[-1].node == "near"
    assert set(request.nodes) == set(request.plan.nodes)


def test_up_honours_pins_that_do_not_cover_the_model(home: Path) -> None:
    """One pinned range; the solver places the rest."""
    request = up(home, {"placement": {"pins": [{"blocks": "2-3", "node": "far"}]}})
    assert any(s.node == "far" and s.start <= 2 and s.stop >= 4 for s in request.plan.segments)


def test_up_without_a_plan_says_why(home: Path) -> None:
    """A refusal, never equal cuts instead."""
    (home / "site.yaml").write_text(snapshot_text(trusted=False, labels={}))
    with pytest.raises(CommandFailed, match=r"No plan: .*privacy"):
        up(home)


def test_the_graph_counts_what_the_store_holds(home: Path) -> None:
    """Bytes per dtype, KV, activations; a tied head is read for each row and held once."""
    model = find_model("store://tiny", home / "models", "model")
    graph = graph_of(model, "float32", Workload(prompt_tokens=2, output_tokens=2), frozenset({3}))
    block = graph.blocks[0]
    # A matrix [4, 8], whose rows are filled up to 32 in few bits, and a vector of 8, which stays float32.
    few = {"int8": 4 * (32 + 4) + 32, "int4": 4 * (16 + 4 + 4) + 32}
    assert block.parameter_bytes == {"float32": 160, "bfloat16": 80, "float16": 80, **few}
    assert block.kv_bytes_per_token == 2 * 2 * 4 * 4
    assert block.activation_bytes_per_token == 8 * 4
    assert block.decode_flops_per_token == 2 * 32 + 4 * 8 * 3
    assert block.prefill_flops_per_token == 2 * 32 + 4 * 8 * 2, (
        "one chunk: every token is computed against all"
    )
    assert graph.head.parameter_bytes["float32"] == (16 * 8 + 8) * 4
    assert graph.embed.parameter_bytes["float32"] == 0
    assert graph.blocks[3].sensitivity == 1.0
    assert graph_of(model, "int4", Workload(), frozenset()).blocks[0].activation_bytes_per_token == 8 * 4
