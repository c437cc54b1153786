"""Manifests: what is wrong is told with its path and mend; nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from splitinfer.operator.errors import UserError
from splitinfer.operator.local.support import NEEDS_SOLVER, REFUSED, check_supported
from splitinfer.operator.spec.blocks import format_blocks, parse_blocks
from splitinfer.operator.spec.manifest import load_manifest, parse_manifest
from splitinfer.operator.spec.resource import Spec, SplitInference, resource

GOOD = """
apiVersion: splitinfer.dev/v1alpha1
kind: SplitInference
metadata: {name: assistant}
spec:
  model: {source: "store://smollm2"}
"""
DESIGN = """
apiVersion: splitinfer.dev/v1alpha1
kind: SplitInference
metadata: {name: assistant}
spec:
  model: {source: "pvc://models/smollm2", servedName: smollm2, dtype: int4, engine: auto}
  workload: {maxContextTokens: 2048, concurrency: 4, promptTokens: 256, outputTokens: 128}
  slo: {ttftMilliseconds: 1500, tpotMilliseconds: 80, windowSeconds: 60}
  privacy: {sensitiveBlocks: ["0-1", "29"], trustedNodes: {matchLabels: {splitinfer.dev/trust: trusted}}}
  placement:
    nodes: {matchLabels: {node-role.kubernetes.io/edge: ""}}
    tolerations: [{key: edge, operator: Exists, effect: NoExecute, tolerationSeconds: 30}]
    maxSegments: 8
    pins: []
  objective: {latency: 100, utilization: 10, exposure: 10, horizonSeconds: 600}
  reconfiguration: {mode: Auto, cooldownSeconds: 60, minimumGainPercent: 10}
"""
HONOURED = {
    "model.source",
    "model.servedName",
    "model.dtype",
    "model.engine",
    "workload.maxContextTokens",
    "workload.concurrency",
    "placement.maxSegments",
    "placement.pins",
    "reconfiguration.mode",
}
"""What a local pipeline acts on, or refuses by value."""


def problem(text: str) -> tuple[str, str]:
    """The one problem of a manifest."""
    with pytest.raises(UserError) as refused:
        parse_manifest(text)
    [found] = refused.value.problems
    return found


def test_the_manifest_of_the_design_is_one() -> None:
    """Every field of the contract is known, under its name."""
    spec = parse_manifest(DESIGN).spec
    assert spec.privacy.sensitive_blocks == ("0-1", "29")
    assert spec.slo is not None
    assert spec.slo.tpot_milliseconds == 80
    assert spec.placement.tolerations[0].toleration_seconds == 30


def test_defaults_are_those_of_the_contract() -> None:
    """Given only a source, the rest is as design and CRD say."""
    spec = parse_manifest(GOOD).spec
    assert (spec.model.dtype, spec.model.engine) == ("float32", "auto")
    assert (spec.workload.max_context_tokens, spec.workload.concurrency) == (2048, 4)
    assert (spec.placement.max_segments, spec.reconfiguration.mode) == (8, "Auto")


@pytest.mark.parametrize(
    ("addition", "field", "words"),
    [
        ("  workload: {concurency: 3}", "spec.workload.concurency", "did you mean concurrency?"),
        ("  colour: red", "spec.colour", "there are model, workload"),
        ("status: {}", "status", "no such field"),
        ("  workload: {concurrency: 0}", "spec.workload.concurrency", "greater than or equal to 1"),
        ('  workload: {concurrency: "4"}', "spec.workload.concurrency", "must be a whole number"),
        ("  workload: {concurrency: 4.5}", "spec.workload.concurrency", "must be a whole number"),
        ("  workload: {concurrency: .nan}", "spec.workload.concurrency", "must be a whole number"),
        ("  workload: {concurrency: true}", "spec.workload.concurrency", "must be a whole number"),
        ("  workload: 5", "spec.workload", "must be a mapping"),
        ("  workload: {promptTokens: 2000, outputTokens: 100}", "spec.workload", "raise maxContextTokens"),
        ("  privacy: {sensitiveBlocks: [0-1]}", "spec.privacy", "trustedNodes"),
        ("  privacy: {sensitiveBlocks: [29]}", "spec.privacy.sensitiveBlocks[0]", "put it in quotes"),
        ('  placement: {pins: [{blocks: "5-2", node: a}]}', "spec.placement.pins[0].blocks", "write '2-5'"),
        (
            '  placement: {pins: [{blocks: "-2", node: a}]}',
            "spec.placement.pins[0].blocks",
            "not a block range",
        ),
        ('  placement: {pins: [{blocks: "1"}]}', "spec.placement.pins[0].node", "is missing"),
        (
            '  placement: {pins: [{blocs: "1", blocks: "1", node: a}]}',
            "spec.placement.pins[0].blocs",
            "blocks?",
        ),
        ("  reconfiguration: {mode: auto}", "spec.reconfiguration.mode", "'Auto'"),
        ("  model: {source: 'store://other'}", "manifest", "given twice"),
    ],
)
def test_what_is_wrong_is_told_with_path_and_mend(addition: str, field: str, words: str) -> None:
    """One mistake, one problem, at its place."""
    found, message = problem(f"{GOOD}{addition}\n")
    assert found == field
    assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 documents"),
        (f"{GOOD}---{GOOD}", "2 documents"),
        ("a: [", "not YAML"),
        ("[1]", "must be a mapping"),
        ("!!python/object/apply:os.system [x]", "not YAML"),
        ("a: &a [*a]", "not YAML"),
        ("? {a: 1}\n: 2", "not YAML"),
        ("[" * 5000, "not"),
    ],
)
def test_what_is_no_manifest_is_refused(text: str, words: str) -> None:
    """Not YAML, not one document, not a mapping, code, a knot, a bomb: an error and no more."""
    found, message = problem(text)
    assert found == "manifest"
    assert words in message


def test_every_mistake_is_told_at_once() -> None:
    """A person mends all of it in one go."""
    with pytest.raises(UserError) as refused:
        parse_manifest(f"{GOOD}  slo: {{ttftMilliseconds: 0, tpotMilliseconds: x}}\n")
    assert [field for field, _ in refused.value.problems] == [
        "spec.slo.ttftMilliseconds",
        "spec.slo.tpotMilliseconds",
    ]


@pytest.mark.parametrize(
    "source", ["smollm2", "store://", "store://../x", "http://x/y", "hf://name", "file://"]
)
def test_a_source_that_leads_nowhere_is_refused(source: str) -> None:
    """Only the four schemes, each in its form."""
    found, message = problem(GOOD.replace("store://smollm2", source))
    assert found == "spec.model.source"
    assert "store://NAME" in message


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"\xff", "UTF-8"), (b"#" * 2**21, "larger")]
)
def test_a_file_that_cannot_be_a_manifest_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    """Absent, not text, too large."""
    path = tmp_path / "m.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_manifest(path)


@given(st.text(max_size=200))
def test_any_text_is_a_resource_or_a_user_error(text: str) -> None:
    """The parser never raises anything else."""
    try:
        parse_manifest(text)
    except UserError:
        return


@given(st.integers(0, 9999), st.integers(1, 100))
def test_block_ranges_survive_being_written_and_read(start: int, count: int) -> None:
    """format, then parse, gives the same range, up to the largest number of four digits."""
    stop = min(start + count, 10_000)
    assert parse_blocks(format_blocks(start, stop)) == (start, stop)


@given(st.text(max_size=9))
def test_a_block_range_is_read_or_refused(text: str) -> None:
    """Anything else than a range is a ValueError."""
    try:
        start, stop = parse_blocks(text)
    except ValueError:
        return
    assert 0 <= start < stop <= 10_000


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Paths of the fields of a model in manifest spelling; lists and selectors count as one field."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        children = [a for a in (annotation, *get_args(annotation)) if a is not NoneType]
        child = next((c for c in children if isinstance(c, type) and issubclass(c, BaseModel)), None)
        path = f"{prefix}{field.alias or name}"
        if child is None or get_origin(annotation) is tuple or child.__name__ == "LabelSelector":
            yield path
        else:
            yield from leaves(child, f"{path}.")


def test_every_field_is_honoured_or_refused_by_the_local_substrate() -> None:
    """A field that is added to the schema must be put on one of the two lists: none is silently ignored."""
    refused = [path for path, _ in (*NEEDS_SOLVER, *REFUSED)]
    for path in leaves(Spec):
        by_name = any(path == r or path.startswith(f"{r}.") for r in refused)
        assert by_name != (path in HONOURED), path


@pytest.mark.parametrize("path", [path for path, _ in (*NEEDS_SOLVER, *REFUSED)])
def test_a_field_that_is_set_and_not_honoured_is_refused_by_name(path: str) -> None:
    """Each field on the list, given any value, even its default."""
    values: dict[str, Any] = {
        "privacy.sensitiveBlocks": [],
        "privacy.trustedNodes": {"matchLabels": {"a": "b"}},
        "placement.nodes": {"matchLabels": {"a": "b"}},
        "placement.tolerations": [],
    }
    head, _, rest = path.partition(".")
    value = values.get(path, 60)
    spec = {"model": {"source": "store://x"}, head: {rest: value} if rest else value}

    with pytest.raises(UserError) as refused:
        check_supported(resource("test", spec), solved=False)
    assert [field for field, _ in refused.value.problems] == [f"spec.{path}"]
    if path in dict(NEEDS_SOLVER):
        check_supported(resource("test", spec))


def test_every_field_says_what_it_is() -> None:
    """The schema is read by people: no field without a description."""
    schema = SplitInference.model_json_schema()
    parts = schema["$defs"]
    for model, part in {"": schema, **parts}.items():
        for name, field in part["properties"].items():
            # A field that says what its type says has the words there only.
            described = field if "$ref" not in field else {**parts[field["$ref"].rpartition("/")[2]], **field}
            assert described.get("description"), f"{model}.{name}"
