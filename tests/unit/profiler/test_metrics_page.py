"""docs/metrics.md against the code, in both directions."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from splitinfer.profiler.series import AGENT_SERIES
from splitinfer.segment_runtime.api.metrics import ApiMetrics
from splitinfer.segment_runtime.entry.forecasts import Forecasts
from splitinfer.segment_runtime.entry.metrics import PipelineMetrics
from splitinfer.segment_runtime.host.metrics import HostMetrics

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/metrics.md").read_text("utf-8")
RANGES: Any = SimpleNamespace(
    kv_bytes=0, epochs=[], engine=SimpleNamespace(resident_weight_bytes=0), sessions=0
)
Found = dict[str, tuple[str, tuple[str, ...]]]


def registered(registry: CollectorRegistry) -> Found:
    """Name to kind and labels, of everything that a program has registered."""
    found: Found = {}
    for collector in vars(registry)["_collector_to_names"]:
        # A metric knows its labels; a collector that makes metrics when it is scraped gives them theirs.
        metric = hasattr(collector, "describe")
        for family in collector.describe() if metric else collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, tuple(vars(collector if metric else family)["_labelnames"]))
    return found


def exported() -> Found:
    """By every program."""
    host, entry = CollectorRegistry(), CollectorRegistry()
    HostMetrics(host, RANGES)
    PipelineMetrics(entry)
    ApiMetrics(entry)
    Forecasts(entry, lambda: None)
    agent: Found = {series.name: (series.kind, series.labels) for series in AGENT_SERIES}
    return agent | registered(host) | registered(entry)


def documented() -> Found:
    """By the rows of the page's tables."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) ?\| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert len(rows) == PAGE.count("\n| `"), "a row that is not of five columns"
    return {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def test_every_series_is_documented_and_no_other() -> None:
    """With its kind and its labels, in their order."""
    assert documented() == exported()


def test_no_program_exports_what_this_test_does_not_know_of() -> None:
    """Every name of a series in the runtime's sources is on the page, wherever it is registered."""
    sources = (path.read_text("utf-8") for path in (ROOT / "segment_runtime").rglob("*.py"))
    named = {name for text in sources for name in re.findall(r'"(splitinfer_(?:host|entry)_\w+)"', text)}
    known = {*documented()}
    assert named
    assert {name for name in named if not {name, f"{name}_total"} & known} == set()


def test_no_series_stands_twice() -> None:
    """Each has one meaning."""
    names = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", sorted({*re.findall(r"splitinfer_\w+", PAGE.partition("## Questions")[2])}))
def test_questions_ask_for_what_there_is(name: str) -> None:
    """A histogram by its parts; labels in selectors and groupings are the series' own."""
    kinds = {series: kind for series, (kind, _) in exported().items()}
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    assert kinds.get(name) in ("gauge", "counter") or kinds.get(base) == "histogram"
