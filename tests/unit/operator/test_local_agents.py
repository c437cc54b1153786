"""Waiting for what this machine's agent finds: until all is known, or it says that it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from splitinfer.operator.errors import CommandFailed
from splitinfer.operator.local import agents
from splitinfer.operator.local.agents import LocalAgents, Probed
from splitinfer.operator.local.machine_snapshot import FAR, MACHINE
from splitinfer.operator.local.models import find_model
from splitinfer.operator.local.process import Child
from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import series as s
from splitinfer.profiler.answers import Sample
from splitinfer.profiler.sources import Gathered, SourceError
from splitinfer.profiler.speeds import DISTURBED
from tests.support.stored import write_index
from tests.unit.operator.test_measured import site

UNKNOWN = Unknown(unknown="the agent has no probe of this model")
FAILED = Sample(s.PROBE_RUNS.name, {"node": MACHINE, "outcome": "failed"}, 1.0, 0.0)


class FakeChild:
    """An agent that is up, with the last line of its log."""

    def __init__(self, word: str) -> None:
        self.listening = {"metrics": "127.0.0.1:1"}
        self.exit_code: int | None = None
        self.log = Path("agent.log")
        self.word = word

    def last_words(self, _lines: int = 5) -> list[str]:
        """One."""
        return [self.word]


@pytest.fixture
def probed(tmp_path: Path) -> Probed:
    """Of a small model."""
    write_index(tmp_path / "models", "tiny", blocks=6)
    model = find_model("store://tiny", tmp_path / "models", "model")
    return Probed(model, "float32", "auto", "cpu", None, 2)


def waiting(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, child: FakeChild, said: Iterator[Any]
) -> LocalAgents:
    """Agents whose reader gives one thing after the other; an exception is raised, a call is made."""

    async def read(*_arguments: object) -> tuple[CapacitySnapshot, Gathered]:
        found = next(said)
        if isinstance(found, Exception):
            raise found
        return cast("tuple[CapacitySnapshot, Gathered]", found)

    monkeypatch.setattr(agents, "read_snapshot", read)
    monkeypatch.setattr(agents, "POLL_SECONDS", 0.0)
    return LocalAgents(probed, tmp_path / "targets.json", "127.0.0.1:2", cast("Child", child))


def told(snapshot: CapacitySnapshot, *samples: Sample) -> tuple[CapacitySnapshot, Gathered]:
    """What the reader gives."""
    return snapshot, Gathered(samples, 0.0)


async def test_it_waits_for_a_probe_that_is_not_disturbed(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An agent that does not answer yet, nothing known yet, a disturbed probe: the next one may be good."""
    lost = site(MACHINE, FAR, block_overhead_seconds=UNKNOWN)
    said = iter([SourceError("nobody"), told(lost), told(lost, FAILED), told(site(MACHINE, FAR), FAILED)])
    child = FakeChild(f"splitinfer.agent: WARNING: probe of tiny in float32: {DISTURBED}")
    found = await waiting(probed, monkeypatch, tmp_path, child, said).measured(("a", "b"))
    assert [node.name for node in found.nodes] == ["a", "b"]
    assert isinstance(found.nodes[0].block_overhead_seconds, Known)


async def test_a_probe_that_cannot_be_is_not_waited_for(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its reason stands in the snapshot."""
    lost = site(MACHINE, FAR, block_overhead_seconds=UNKNOWN)
    child = FakeChild("splitinfer.agent: WARNING: probe of tiny in float32: no such engine")
    agents = waiting(probed, monkeypatch, tmp_path, child, iter([told(lost, FAILED)]))
    [node] = (await agents.measured(("a",))).nodes
    assert node.block_overhead_seconds == Unknown(unknown="probe of tiny in float32: no such engine")


async def test_an_agent_that_leaves_is_told_with_its_last_words(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And with its exit code and log."""
    child = FakeChild("error: --listen: in use")
    child.exit_code = 2
    agents = waiting(probed, monkeypatch, tmp_path, child, iter([]))
    with pytest.raises(
        CommandFailed, match=r"left with 2 \(all of it in agent\.log\): error: --listen: in use"
    ):
        await agents.measured(("a",))
    assert agents.address is None


async def test_nothing_known_in_time_says_what_is_missing(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By name."""
    monkeypatch.setattr(agents, "MEASURE_SECONDS", 0.05)
    lost = told(site(MACHINE, FAR, free_memory_bytes=UNKNOWN))
    found = waiting(probed, monkeypatch, tmp_path, FakeChild(""), iter(lambda: lost, None))
    with pytest.raises(CommandFailed, match="not everything was known: free_memory_bytes: the agent has no"):
        await found.measured(("a",))


def test_the_agent_is_told_which_processes_serve(
    probed: Probed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a file that is put in its place whole, and only when they change."""
    found = waiting(probed, monkeypatch, tmp_path, FakeChild(""), iter([]))
    found.serving(["http://h:1/metrics"])
    path = tmp_path / "targets.json"
    assert json.loads(path.read_text()) == {
        "peers": {FAR: {"address": "127.0.0.1:2", "site": None}},
        "serving": ["http://h:1/metrics"],
        "probes": [{"model": "tiny", "dtype": "float32", "engine": "auto", "device": "cpu", "cpu_share": 2}],
    }
    before = path.stat().st_ino
    found.serving(["http://h:1/metrics"])
    assert path.stat().st_ino == before
    found.serving(["http://h:1/metrics", "http://h:2/metrics"])
    assert path.stat().st_ino != before
