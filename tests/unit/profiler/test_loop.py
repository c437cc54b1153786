"""The agent's rounds in a world of the test's making: what it measures when, and what it then knows."""

from __future__ import annotations

import time

import pytest

from splitinfer.profiler.exporter import Published
from splitinfer.profiler.series import HOST_SERIES, PHASES
from splitinfer.profiler.state import AgentState
from splitinfer.profiler.targets import PeerTarget, ProbeTarget, Targets, TargetsError
from tests.support.agents import TIMES, World, probe_result
from tests.unit.profiler.test_serving import host_text

PROBE = ProbeTarget(model="m")
URL = "http://127.0.0.1:1/metrics"


@pytest.fixture
def published() -> Published:
    """Empty."""
    return Published(AgentState())


async def test_readings_come_soon_and_then_each_interval(published: Published) -> None:
    """The first after half a second, without any target; then of the last window alone."""
    world = World(busy=1.0)
    first = await world.run(1.0, published)
    assert first.node is not None
    assert first.node.at == pytest.approx(1000.5, abs=0.11)
    assert first.node.busy_ratio == pytest.approx(0.5, abs=0.02)
    assert first.node.runnable == pytest.approx(1.0, abs=0.05)
    assert (first.node.serving_ratio, first.node.cpus, first.node.machine_cpus) == (0.0, 2.0, 2)
    world.busy = 0.0
    later = await world.run(10.0, published)
    assert later.node is not None
    assert later.node.busy_ratio == pytest.approx(0.0, abs=0.01)


async def test_a_probe_at_each_interval_that_is_no_load_of_others(published: Published) -> None:
    """One run a minute; its CPU time is counted, and is in no reading of what others use."""
    world = World(targets=[Targets(probes=(PROBE,))])
    state = await world.run(130.0, published)
    assert [round(at - 1000.0, -1) for at, _ in world.probed] == [0, 60, 120]
    assert state.counts.probe_runs == {"done": 3, "failed": 0, "over_budget": 0, "serving": 0}
    assert state.counts.probe_cpu_seconds == pytest.approx(2.7)
    assert state.probes[PROBE].result == probe_result()
    assert state.node is not None
    assert state.node.busy_ratio == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("cpus", [0.5, 4.0])
async def test_cpus_that_change_are_probed_within_two_intervals(published: Published, cpus: float) -> None:
    """A node that is throttled, or freed, in the middle of a minute."""
    world = World(targets=[Targets(probes=(PROBE,))], cpus=lambda now: cpus if now >= 1024.0 else 2.0)
    state = await world.run(55.0, published)
    assert len(world.probed) == 2
    assert 0 <= world.probed[1][0] - 1024.0 <= 20.0
    assert state.node is not None
    assert state.node.cpus == cpus


async def test_the_budget_holds_probes_back(published: Published) -> None:
    """Those that do not begin are counted."""
    world = World(targets=[Targets(probes=(PROBE,))], probe_cost=2.0)
    state = await world.run(600.0, published, probe_budget=30.0)
    # 3 at once, and 27 in an hour: of 2 seconds each.
    assert state.counts.probe_cpu_seconds <= 3 + 27 / 6 + 2
    assert state.counts.probe_runs["over_budget"] > 0
    assert state.counts.probe_runs["done"] + state.counts.probe_runs["over_budget"] == 10


async def test_a_node_whose_host_does_not_answer_is_unknown_and_not_probed(published: Published) -> None:
    """It may be serving, and what it uses may not be counted as others'."""
    world = World(targets=[Targets(serving=(URL,), probes=(PROBE,))])
    state = await world.run(20.0, published)
    assert state.node is not None
    assert (state.node.serving_ratio, state.node.busy_ratio, state.node.runnable) == (None, None, None)
    assert state.node.memory_available_bytes == 8 << 30
    assert world.probed == []
    assert state.counts.probe_runs["serving"] == 1
    assert state.counts.scrape_errors >= 3


async def test_a_node_that_serves_is_probed_when_it_does_so_no_more(published: Published) -> None:
    """Half of the time in steps for 70 seconds, then none."""
    world = World(targets=[Targets(serving=(URL,), probes=(PROBE,))])
    world.metrics[URL] = lambda now: host_text(0.5 * (min(now, 1070.0) - 1000.0), 0.0)
    busy = await world.run(65.0, published)
    assert busy.node is not None
    assert busy.node.serving_ratio == pytest.approx(0.5, abs=0.05)
    assert (world.probed, busy.counts.probe_runs["serving"]) == ([], 2)
    world.targets = [Targets(serving=(URL,), probes=(PROBE,))]
    idle = await world.run(90.0, published)
    assert idle.node is not None
    assert idle.node.serving_ratio == 0.0
    assert world.probed[0][0] > 1070.0


def stepping(now: float) -> str:
    """A host that from 1015 on computes 20 steps a second, each of one block, one row and 128 tokens, in 4 ms."""
    count = 20 * max(0.0, now - 1015.0)
    sums = (count, count * 0.004, count, count, count * 128)
    lines = [f'{series.name}{{phase="{phase}"}} {value if phase == "decode" else 0.0}\n'
             for series, value in zip(HOST_SERIES, sums, strict=True) for phase in PHASES]  # fmt: skip
    return "process_cpu_seconds_total 3\n" + "".join(lines)


@pytest.mark.parametrize(("busy", "expected"), [(0.0, 2.0), (2.0, 2.0 / 2)])
async def test_live_steps_calibrate_the_probe(published: Published, busy: float, expected: float) -> None:
    """Steps of twice what the probe predicts (a block of 1.5 ms and 0.5 ms for the step), less what others slow them."""
    world = World(targets=[Targets(serving=(URL,), probes=(PROBE,))], busy=0.0)
    world.metrics[URL] = stepping
    await world.run(14.0, published)  # the probe
    world.busy = busy  # two threads of others and one of ours, on two CPUs: half is left
    world.targets = [Targets(serving=(URL,), probes=(PROBE,))]
    state = await world.run(45.0, published, probe_interval=1000.0, serving_threshold=0.0)
    assert state.probes[PROBE].calibration.ratio(world.now) == pytest.approx(expected, rel=0.03)


async def test_the_steps_of_several_models_calibrate_none(published: Published) -> None:
    """It is not known whose they were."""
    both = (PROBE, ProbeTarget(model="other"))
    world = World(targets=[Targets(serving=(URL,), probes=both)])
    world.metrics[URL] = stepping
    state = await world.run(60.0, published)
    assert set(state.probes) == set(both)
    assert {reading.calibration.ratio(world.now) for reading in state.probes.values()} == {None}


async def test_a_few_links_are_all_probed_in_the_first_round(published: Published) -> None:
    """One that does not answer is unknown and counted; the node itself is no peer."""
    peers = {f"n{i}": PeerTarget(address=f"h:{i + 1}") for i in range(6)}
    world = World(targets=[Targets(peers={**peers, "me": PeerTarget(address="h:99")})])
    world.links = {f"h:{i + 1}": TIMES for i in range(5)}
    state = await world.run(5.0, published)
    assert {name: link.times for name, link in state.links.items()} == {
        **{f"n{i}": TIMES for i in range(5)},
        "n5": None,
    }
    assert sorted(address for _, address in world.asked) == [f"h:{i + 1}" for i in range(6)]
    assert (state.counts.link_errors, state.counts.link_bytes) == (1, 5_000_000)


async def test_a_peer_that_goes_is_unknown_and_gets_no_turn_of_others(published: Published) -> None:
    """A link that fails says so when it does; and it waits for its next turn as all do."""
    peers = {f"n{i}": PeerTarget(address=f"h:{i + 1}") for i in range(4)}
    world = World(targets=[Targets(peers=peers)], links={f"h:{i + 1}": TIMES for i in range(4)})
    await world.run(5.0, published, link_budget=40e6)
    del world.links["h:1"]
    world.asked.clear()
    world.targets = [Targets(peers=peers)]
    state = await world.run(900.0, published, link_budget=40e6)  # four at once, then one in 100 s
    assert {name for name, link in state.links.items() if link.times is None} == {"n0"}
    assert set(state.links) == {"n0", "n1", "n2", "n3"}
    turns = [address for _, address in world.asked]
    assert len(turns) <= 4 + 9 * 4 / 3 + 1  # who does not answer costs nothing
    assert max(map(turns.count, turns)) - min(map(turns.count, turns)) <= 1


async def test_the_link_budget_bounds_an_hour(published: Published) -> None:
    """However many peers there are: of those that can be kept fresh, all at once as far as it goes, then in turn."""
    peers = {f"n{i}": PeerTarget(address=f"h:{i + 1}") for i in range(40)}
    world = World(targets=[Targets(peers=peers)], links={f"h:{i + 1}": TIMES for i in range(40)})
    await world.run(3600.0, published, link_budget=100e6, interval=30.0)
    assert 60 <= len(world.asked) <= 100
    turns = [address for _, address in world.asked]
    at_once = [address for at, address in world.asked if at < 1002.0]
    assert len(at_once) == 10  # a tenth of the budget, of a megabyte each
    assert len({*turns}) == 14  # each again before it is stale
    assert max(map(turns.count, turns)) - min(map(turns.count, turns)) <= 1


async def test_a_budget_of_nothing_probes_no_link(published: Published) -> None:
    """And no division by it."""
    world = World(targets=[Targets(peers={"a": PeerTarget(address="h:1")})], links={"h:1": TIMES})
    await world.run(60.0, published, link_budget=0.0)
    assert world.asked == []


async def test_what_leaves_the_targets_leaves_the_export(published: Published) -> None:
    """Peers and probes; labels stay bounded."""
    world = World(links={"h:1": TIMES, "h:2": TIMES})
    peers = {"a": PeerTarget(address="h:1"), "b": PeerTarget(address="h:2")}
    world.targets = [Targets(peers=peers, probes=(PROBE,))]
    state = await world.run(5.0, published)
    assert (set(state.links), set(state.probes)) == ({"a", "b"}, {PROBE})
    world.targets = [Targets(peers={"b": peers["b"]})]
    state = await world.run(3.0, published)
    assert (set(state.links), set(state.probes)) == ({"b"}, set())


@pytest.mark.parametrize("interval", [0.3, 10.0])
async def test_targets_are_looked_at_each_second(published: Published, interval: float) -> None:
    """However short or long the interval is."""
    world = World(targets=[Targets(), Targets(probes=(PROBE,))])
    await world.run(10.0 + interval, published, interval=interval)
    assert len(world.probed) == 1


async def test_a_bad_file_keeps_the_last_good_one(
    published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and said why."""
    world = World(links={"h:1": TIMES})
    world.targets = [Targets(peers={"a": PeerTarget(address="h:1")}), TargetsError("peers.a.address: no")]
    state = await world.run(15.0, published)
    assert set(state.links) == {"a"}
    assert state.counts.targets_errors == 1
    assert "peers.a.address: no" in caplog.text


async def test_a_probe_that_fails_leaves_the_last_one_to_age(
    published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, and said once."""
    world = World(targets=[Targets(probes=(PROBE,))])
    state = await world.run(20.0, published)
    good = state.probes[PROBE]
    world.targets = [Targets(probes=(PROBE,))]
    world.probe = "no model 'm'"
    state = await world.run(130.0, published)
    assert state.probes[PROBE] == good
    assert state.counts.probe_runs["failed"] == 3
    assert caplog.text.count("no model 'm'") == 1


async def test_serving_processes_that_change_begin_a_new_window(published: Published) -> None:
    """So that a host that was just started makes nothing unknown, and none that is gone does."""
    world = World(busy=1.0, targets=[Targets()])
    await world.run(5.0, published)
    world.metrics[URL] = lambda _now: host_text(0.0, 0.0)
    world.targets = [Targets(serving=(URL,))]
    state = await world.run(14.0, published)
    assert state.node is not None
    assert state.node.busy_ratio == pytest.approx(0.5, abs=0.02)
    assert state.node.serving_ratio == 0.0


async def test_a_wall_clock_that_jumps_changes_no_round(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of the agent's decisions asks it."""

    def jump() -> float:
        raise AssertionError("the wall clock was asked")

    monkeypatch.setattr(time, "time", jump)
    world = World(targets=[Targets(probes=(PROBE,))])
    await world.run(70.0, published)
    assert len(world.probed) == 2
