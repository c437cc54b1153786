"""Asking agents themselves: the same snapshot as through a server, and no sudden death by one lost answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from splitinfer.optimizer.capacity import CapacitySnapshot
from splitinfer.optimizer.values import Known, Unknown
from splitinfer.profiler import agents
from splitinfer.profiler.agents import AgentsSource
from splitinfer.profiler.ages import StaleBounds
from splitinfer.profiler.exposition import ExpositionError, parse_exposition
from splitinfer.profiler.node_speeds import Asked
from splitinfer.profiler.reader import read_snapshot
from splitinfer.profiler.sources import SourceError
from tests.support.agent_values import DTYPE, MODEL, Exporter, exposition, link_values, node_values

BOUNDS = StaleBounds()


class Clocks:
    """A monotonic one, and one on the wall that anybody may set."""

    def __init__(self) -> None:
        self.own, self.wall = 100.0, 1_700_000_000.0


@pytest.fixture
def exporters() -> Iterator[list[Exporter]]:
    """Agents of a and b."""
    with ExitStack() as stack:
        bodies = (exposition("a", node_values() | link_values("b")), exposition("b", node_values()))
        yield [stack.enter_context(Exporter(body)) for body in bodies]


def source(of: list[Exporter], clocks: Clocks | None = None, timeout: float = 5.0) -> AgentsSource:
    """Over these agents, those of the list at each time."""
    at = clocks or Clocks()
    return AgentsSource(
        lambda: [one.address for one in of],
        BOUNDS.window_seconds,
        timeout,
        clock=lambda: at.own,
        wall=lambda: at.wall,
    )


async def read(of: AgentsSource) -> CapacitySnapshot:
    """The snapshot now."""
    snapshot, _ = await read_snapshot(of, Asked(MODEL, DTYPE))
    return snapshot


def memory(snapshot: CapacitySnapshot, node: int = 0) -> Known | Unknown:
    """Of a node."""
    return snapshot.nodes[node].free_memory_bytes


async def test_everything_that_agents_say_is_there(exporters: list[Exporter]) -> None:
    """With the ages that they tell."""
    async with source(exporters) as of:
        snapshot = await read(of)
    assert [node.name for node in snapshot.nodes] == ["a", "b"]
    for node in snapshot.nodes:
        assert all(isinstance(reading, Known) for _, reading in node.readings(DTYPE))
    assert memory(snapshot) == Known(value=4e9, age_seconds=2, source="agent")
    assert [(link.from_node, link.to_node) for link in snapshot.links] == [("a", "b")]


@pytest.mark.parametrize("body", [b"", b"\xff", b"<html>", b"a{", b"m 1\nm 1 1 1 1"])
async def test_an_agent_that_answers_badly_grows_old_with_what_it_said_last(
    exporters: list[Exporter], body: bytes
) -> None:
    """The failure is told; the others are as new as ever; what is remembered ends with the window."""
    clocks = Clocks()
    async with source(exporters, clocks) as of:
        await read(of)
        exporters[0].body = body
        if not body:
            exporters[0].status = 500
        clocks.own += 30
        snapshot, gathered = await read_snapshot(of, Asked(MODEL, DTYPE))
        assert list(gathered.failures) == [exporters[0].address]
        assert memory(snapshot, 0) == Known(value=4e9, age_seconds=32, source="agent")
        assert memory(snapshot, 1) == Known(value=4e9, age_seconds=2, source="agent")
        clocks.own += 90
        assert isinstance(memory(await read(of)), Unknown)
        clocks.own += 1000
        assert [node.name for node in (await read(of)).nodes] == ["b"]


async def test_none_that_answers_is_an_error_and_the_reason_is_one_of_theirs(
    exporters: list[Exporter],
) -> None:
    """So that whoever holds the last snapshot lets it age."""
    for exporter in exporters:
        exporter.status = 503
    async with source(exporters) as of:
        with pytest.raises(SourceError, match=f"no agent answers: {exporters[0].address}: 503 instead of"):
            await read(of)


async def test_an_agent_that_left_the_list_is_forgotten(exporters: list[Exporter]) -> None:
    """It may have come back at another address: the old one speaks for nobody any more."""
    async with source(exporters) as of:
        await read(of)
        del exporters[1:]
        assert [node.name for node in (await read(of)).nodes] == ["a"]


async def test_two_agents_of_one_node_contradict_one_another(exporters: list[Exporter]) -> None:
    """As they do behind a server."""
    exporters[1].body = exposition("a", node_values(memory=5e9))
    async with source(exporters) as of:
        reading = memory(await read(of))
    assert isinstance(reading, Unknown)
    assert "both speak for it" in reading.unknown


async def test_a_wall_clock_that_is_set_changes_no_age(exporters: list[Exporter]) -> None:
    """Back or forth, between two questions; the date of the snapshot goes on evenly too."""
    clocks = Clocks()
    async with source(exporters, clocks) as of:
        first = await read(of)
        exporters[0].status = 500
        for jump in (-86_400.0, 1e9):
            clocks.wall += jump
            clocks.own += 10
            later = await read(of)
        assert memory(later) == Known(value=4e9, age_seconds=22, source="agent")
        assert later.taken_at_seconds - first.taken_at_seconds == pytest.approx(20)


async def test_what_says_too_much_or_nothing_at_all_is_given_up(
    exporters: list[Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endless answer, and an address at which something listens and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        addresses = [exporters[0].address, nobody, "x y:z"]
        async with AgentsSource(lambda: addresses, 60, 0.5) as of:
            with monkeypatch.context() as patch:
                patch.setattr(agents, "MAX_BODY_BYTES", 1000)
                with pytest.raises(SourceError, match="says more than 0 MiB"):
                    await of.gather()
            gathered = await of.gather()
    assert sorted(gathered.failures) == sorted(addresses[1:])
    assert gathered.failures[nobody] == "no answer in 0.5 s"


SOUND = exposition("a", node_values() | link_values("b"))
texts = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet='splitinfer_node_cpus{}=",\\n 0123456789.eE+-NaInf#TYPEHELP\n', max_size=200).map(
        str.encode
    ),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(st.binary(max_size=8), st.integers(0, 2000)).map(
        lambda cut: SOUND[: cut[1]] + cut[0] + SOUND[cut[1] :]
    ),
)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_what_is_exposed_is_samples_or_a_typed_error(body: bytes) -> None:
    """Whatever an agent's address answers."""
    try:
        found = parse_exposition(body, "x:1", 5.0)
    except ExpositionError:
        return
    for sample in found:
        assert isinstance(sample.value, float)
        assert sample.labels["instance"] == "x:1"
        assert sample.at_seconds == 5.0


def test_the_same_series_twice_is_no_exposition() -> None:
    """Neither of the two is taken."""
    with pytest.raises(ExpositionError, match="twice"):
        parse_exposition(SOUND + SOUND, "x:1", 5.0)
