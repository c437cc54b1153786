"""From manifest and command line to what shall run: every wrong input is refused by name, before a start."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from splitinfer.operator.errors import UserError
from splitinfer.operator.local.placing import Options
from splitinfer.operator.local.request import MAX_THREADS, Request, make_request, table_rows
from splitinfer.operator.spec.resource import resource
from splitinfer.segment_runtime.engine import threads
from tests.support.stored import write_index


def test_as_many_threads_are_taken_as_by_the_engines() -> None:
    """The command line imports nothing of the runtime, and says the same."""
    assert MAX_THREADS == threads.MAX_THREADS


def request_for(store: Path, spec: dict[str, Any] | None = None, **options: Any) -> Request:
    """The request for the model ``tiny`` of a store."""
    given = {"model": {"source": "store://tiny"}, **(spec or {})}
    options = {"cuts": "equal", **options}
    return make_request(resource("test", given), dataclasses.replace(Options(store=store), **options))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with ``tiny``: 6 blocks of 40 weights, made for 4096 tokens."""
    write_index(tmp_path / "models", "tiny", blocks=6)
    return tmp_path / "models"


def cut(request: Request) -> list[str]:
    """The segments as text."""
    return [str(segment) for segment in request.plan.segments]


def test_equal_cuts_over_three_nodes(store: Path) -> None:
    """`--cuts equal`: three segments by default, four sessions of 2048 tokens, float32 on whatever engine is best."""
    request = request_for(store)

    assert cut(request) == ["node-0[0:2]", "node-1[2:4]", "node-2[4:6]"]
    assert request.plan.kv_budget_tokens == 4 * 2048
    assert (request.plan.dtype, request.engine, request.device) == ("float32", "auto", "cpu")
    assert list(table_rows(request)) == [
        ("node-0", "0-1", 320),
        ("node-1", "2-3", 320),
        ("node-2", "4-5", 320),
    ]


def test_a_model_smaller_than_the_default_gets_fewer_nodes_and_less_context(tmp_path: Path) -> None:
    """Defaults adapt to the model; only what a person asked for is an error."""
    write_index(tmp_path, "tiny", blocks=2, max_context_tokens=64)
    request = request_for(tmp_path)

    assert cut(request) == ["node-0[0:1]", "node-1[1:2]"]
    assert request.plan.max_context_tokens == 64


def test_explicit_cuts_name_where_segments_begin(store: Path) -> None:
    """`--cuts 1,5` gives three segments; a fourth node is idle and may take over."""
    request = request_for(store, cuts=(1, 5), nodes=4)

    assert cut(request) == ["node-0[0:1]", "node-1[1:5]", "node-2[5:6]"]
    assert request.nodes == ("node-0", "node-1", "node-2", "node-3")


def test_the_command_line_wins_over_the_manifest(store: Path) -> None:
    """Dtype and engine may be given in both."""
    spec = {"model": {"source": "store://tiny", "dtype": "float16"}}
    assert request_for(store, spec).plan.dtype == "float16"
    assert request_for(store, spec, dtype="bfloat16").plan.dtype == "bfloat16"


def test_each_node_may_have_an_engine_of_its_own(store: Path) -> None:
    """One engine for all, and others by node; few bits take the bytes that they have."""
    request = request_for(store, engine="onnx", node_engines={"node-1": "auto"}, dtype="int4")

    assert [request.engine_of(node) for node in request.nodes] == ["onnx", "auto", "onnx"]
    assert request.node_bytes("node-0") == (60, 2 * 8192 * 2 * 2 * 4 * 4), "80 values in 24 bytes per 32"


def test_a_file_source_is_a_model_folder(store: Path) -> None:
    """file:///PATH names the folder of a stored model, wherever that store is."""
    spec = {"model": {"source": f"file://{store}/tiny"}}
    assert request_for(Path("/nowhere"), spec).model.root == store


PINS = {"placement": {"pins": [{"blocks": "0-5", "node": "a"}]}}


@pytest.mark.parametrize(
    ("spec", "options", "field", "words"),
    [
        ({"model": {"source": "store://other"}}, {}, "spec.model.source", "there: tiny"),
        ({"model": {"source": "file:///nowhere"}}, {}, "spec.model.source", "splitinfer models import"),
        ({"model": {"source": "hf://org/name"}}, {}, "spec.model.source", "splitinfer models import"),
        ({"model": {"source": "pvc://claim/x"}}, {}, "spec.model.source", "store://"),
        (
            {"model": {"source": "store://tiny", "servedName": "x"}},
            {},
            "spec.model.servedName",
            "--name x",
        ),
        ({}, {"nodes": 0}, "--nodes", "at least 1"),
        ({}, {"nodes": -2}, "--nodes", "at least 1"),
        ({}, {"nodes": 7}, "--nodes", "use at most 6"),
        ({}, {"cuts": (3, 3)}, "--cuts", "3 after 3: cuts must grow"),
        ({}, {"cuts": (4, 2)}, "--cuts", "2 after 4: cuts must grow"),
        ({}, {"cuts": (0,)}, "--cuts", "cut 0 is outside 1..5"),
        ({}, {"cuts": (6,)}, "--cuts", "cut 6 is outside 1..5"),
        ({}, {"cuts": (2, 9)}, "--cuts", "cut 9 is outside 1..5"),
        ({}, {"cuts": (-1,)}, "--cuts", "cut -1 is outside 1..5"),
        ({}, {"cuts": (2, 4), "nodes": 2}, "--nodes", "use --nodes 3"),
        ({}, {"threads": 0}, "--threads", "at least 1"),
        ({}, {"threads": MAX_THREADS + 1}, "--threads", f"at most {MAX_THREADS}"),
        (PINS, {"cuts": (2,)}, "--cuts", "remove one"),
        (PINS, {}, "--cuts", "remove one"),
        ({"slo": {"tpotMilliseconds": 50}}, {}, "spec.slo.tpotMilliseconds", "remove one"),
        ({"placement": {"maxSegments": 2}}, {}, "spec.placement.maxSegments", "3 segments asked for"),
        ({"workload": {"maxContextTokens": 5000}}, {}, "spec.workload.maxContextTokens", "4096"),
        ({}, {"memory_bytes": 1000}, "spec.workload.concurrency", "lower concurrency"),
        (
            {"model": {"source": "store://tiny", "dtype": "int4", "engine": "torch"}},
            {},
            "spec.model.dtype",
            "use engine onnx or auto",
        ),
        (
            {"model": {"source": "store://tiny", "dtype": "float16", "engine": "onnx"}},
            {},
            "spec.model.dtype",
            "float32, int8 and int4",
        ),
        ({"model": {"source": "store://tiny", "engine": "onnx"}}, {"device": "cuda"}, "--device", "torch"),
        ({}, {"node_engines": {"node-7": "torch"}}, "--node-engine", "node-0, node-1, node-2"),
        ({}, {"node_engines": {"node-1": "torch"}, "dtype": "int8"}, "spec.model.dtype", "int8"),
        ({"reconfiguration": {"mode": "Auto"}}, {}, "spec.reconfiguration.mode", "Manual"),
    ],
)
def test_wrong_input_names_the_field_and_the_mend(
    store: Path, spec: dict[str, Any], options: dict[str, Any], field: str, words: str
) -> None:
    """Every mistake is told with the field it is in and what mends it."""
    with pytest.raises(UserError) as refused:
        request_for(store, spec, **options)

    [(named, message)] = refused.value.problems
    assert named == field
    assert words in message


def test_a_damaged_index_is_refused_by_its_path(store: Path) -> None:
    """Half an index is told with the file and the mend, not with a traceback."""
    (store / "tiny" / "index.json").write_text('{"blocks": 6', "utf-8")

    with pytest.raises(UserError, match=r"index\.json cannot be read; import the model again"):
        request_for(store)
