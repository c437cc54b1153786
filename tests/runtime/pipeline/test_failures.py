"""What breaks at a chosen moment, and what a user and an operator then see."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import pytest

from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.generate import NotReady, PipelineFailed
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from tests.runtime.pipeline.conftest import CONTEXT, NODES
from tests.support.fleet import Fleet, Load, assert_no_leak, describe
from tests.support.homes import wait_gone
from tests.support.models import Case
from tests.support.peer import peer_of
from tests.support.pipelines import cut, plan_for, running_entry
from tests.support.streams import finish, until
from tests.support.twins import Twin

MOMENTS = ("before prepare", "after prepare", "in the pause", "after commit")


@pytest.mark.parametrize("victim", ["first", "last"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_host_of_the_new_plan_dies_at_a_chosen_moment_of_the_change(
    case: Case,
    engine: Engine,
    fleet: Fleet,
    hosts: dict[str, str],
    twins: list[Twin],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    victim: str,
) -> None:
    """Whichever moment it is, the streams go on over the hosts that are left."""
    old = cut(case.stored, [2, 4], ["node-0", "node-1", "node-2"])
    new = cut(case.stored, [1, 3], ["node-1", "node-2", "node-3"])
    node = new[0 if victim == "first" else -1].node
    killed = False

    def kill_once() -> None:
        nonlocal killed
        if not killed:
            killed = True
            fleet.kill(node)

    def around(
        function: Callable[..., Awaitable[object]], *, before: bool
    ) -> Callable[..., Awaitable[object]]:
        async def wrapped(*args: object, **kwargs: object) -> object:
            if before:
                kill_once()
            result = await function(*args, **kwargs)
            if not before:
                kill_once()
            return result

        return wrapped

    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, old, context=CONTEXT), hosts)
        async with Load(entry, twins) as load:
            await load.more_tokens(10)
            match moment:
                case "before prepare":
                    monkeypatch.setattr(changes, "prepare", around(changes.prepare, before=True))
                case "after prepare":
                    monkeypatch.setattr(changes, "prepare", around(changes.prepare, before=False))
                case "in the pause":
                    monkeypatch.setattr(Pipeline, "pause", around(Pipeline.pause, before=True))
                case "after commit":
                    monkeypatch.setattr(changes, "commit", around(changes.commit, before=False))
            epoch = entry.coordinator.newest_epoch + 1
            entry.coordinator.accept(plan_for(case.stored, new, epoch=epoch, context=CONTEXT), hosts)
            await until(lambda: killed, "the moment")
            await load.more_tokens(100)
        assert load.wrong == []
        await until(lambda: entry.coordinator.state == "serving", "an answer to the change")
        assert entry.pipeline.plan is not None
        assert node not in entry.pipeline.plan.nodes
        await assert_no_leak(entry, {n: a for n, a in hosts.items() if n != node})


async def test_a_stopped_host_is_noticed_and_harms_nothing_when_it_goes_on(
    case: Case, engine: Engine, fleet: Fleet, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """SIGSTOP: its connections stay open, keepalive finds it. After SIGCONT it is swept and serves again."""
    plan = plan_for(case.stored, cut(case.stored, [2, 4], ["node-0", "node-1", "node-2"]), context=CONTEXT)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan, hosts)
        async with Load(entry, twins) as load:
            await load.more_tokens(20)
            fleet.freeze("node-1")
            before = entry.pipeline.epoch
            await until(
                lambda: entry.pipeline.epoch > before and entry.pipeline.ready(), "a recovery", seconds=30
            )
            assert entry.pipeline.plan is not None
            assert "node-1" not in entry.pipeline.plan.nodes
            await load.more_tokens(50)
            fleet.thaw("node-1")
            await load.more_tokens(50)
        assert load.wrong == []
        await assert_no_leak(entry, hosts)
        again = plan_for(
            case.stored, plan.segments, epoch=entry.coordinator.newest_epoch + 1, context=CONTEXT
        )
        await entry.serve(again, hosts)
        await finish(entry.pipeline.submit(twins[0].request), twins[0])


async def test_a_new_entry_takes_over_hosts_that_hold_epochs_of_the_old_one(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """It knows none of their epochs, numbers its plan above them, and frees what the old one left."""
    segments = cut(case.stored, [2, 4], ["node-0", "node-1", "node-2"])
    async with running_entry(case.stored, engine=engine) as first:
        await first.serve(plan_for(case.stored, segments, context=CONTEXT), hosts)
        stream = first.pipeline.submit(twins[0].request)
        await anext(stream)
        left = first.pipeline.epoch
    for node in ("node-0", "node-1", "node-2"):
        assert left in [r.epoch for r in (await describe(hosts[node])).ranges]
    moved = cut(case.stored, [3], ["node-2", "node-3"])
    async with running_entry(case.stored, engine=engine) as second:
        await second.serve(plan_for(case.stored, moved, epoch=1, context=CONTEXT), hosts)
        assert second.pipeline.epoch > left
        for twin in twins[:2]:
            await finish(second.pipeline.submit(twin.request), twin)
        second.coordinator.update_hosts(hosts)
        await assert_no_leak(second, hosts)


@pytest.mark.parametrize("ahead", [0, 1000])
async def test_what_an_old_entry_left_on_a_host_outside_the_plan_is_dropped_too(
    case: Case, engine: Engine, hosts: dict[str, str], ahead: int
) -> None:
    """Whatever its epoch: far newer than the plan's, or the same number by chance."""
    fences = {node: (await describe(hosts[node])).fence for node in NODES}
    first = max(fences.values()) + 1
    async with peer_of(case.stored, "node-3", hosts["node-3"]) as old:
        await old.prepare(old.request(first + ahead))
        async with running_entry(case.stored, engine=engine) as entry:
            segments = cut(case.stored, [2], ["node-0", "node-1"])
            await entry.serve(plan_for(case.stored, segments, epoch=first, context=CONTEXT), hosts)
            assert entry.pipeline.epoch == first
            await assert_no_leak(entry, hosts)


async def test_a_host_that_drains_is_replaced_before_it_ends(
    case: Case, engine: Engine, fleet: Fleet, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """SIGTERM under streams: the entry moves away by itself, the host ends long before its grace does."""
    plan = plan_for(case.stored, cut(case.stored, [2, 4], ["node-0", "node-1", "node-2"]), context=CONTEXT)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan, hosts)
        async with Load(entry, twins) as load:
            await load.more_tokens(20)
            fleet["node-1"].signal(signal.SIGTERM)
            assert await asyncio.to_thread(wait_gone, fleet["node-1"].pid, 15), "its grace is 20 s"
            await load.more_tokens(20)
        assert load.wrong == []
        assert entry.coordinator.state == "serving"
        changes_done = entry.metrics.plan_changes.labels("host_lost", "done")._value.get()
        assert changes_done == 0, "it was lost, not replaced"


async def test_past_the_recovery_deadline_requests_fail_and_new_ones_are_refused_until_it_recovers(
    case: Case, engine: Engine, fleet: Fleet, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """PipelineFailed to who waits, NotReady to who comes; then a host is back and both are over."""
    async with running_entry(case.stored, engine=engine) as entry:
        entry.coordinator.breakage.recovery_seconds = 1.0
        await entry.serve(plan_for(case.stored, cut(case.stored, [], ["node-0"]), context=CONTEXT), hosts)
        stream = entry.pipeline.submit(twins[0].request)
        await anext(stream)
        for node in NODES:
            fleet.kill(node)
        with pytest.raises(PipelineFailed, match="has not recovered"):
            async for _ in stream:
                pass
        with pytest.raises(NotReady, match="has not recovered"):
            entry.pipeline.submit(twins[0].request)
        assert entry.coordinator.state == "failed"
        entry.coordinator.update_hosts(fleet.ensure(["node-2"]))
        await until(entry.pipeline.ready, "the recovery")
        await finish(entry.pipeline.submit(twins[0].request), twins[0])
        assert entry.coordinator.state == "serving"


async def test_a_first_plan_that_cannot_be_served_says_why_and_a_better_one_is_taken(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """A wrong address: the state is failed, with a sentence; nothing has to be restarted."""
    plan = plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"]), context=CONTEXT)
    async with running_entry(case.stored, engine=engine) as entry:
        swapped = {"node-0": hosts["node-1"], "node-1": hosts["node-0"]}
        entry.coordinator.accept(plan, swapped)
        await until(lambda: entry.coordinator.state == "failed", "the refusal")
        assert "answers node-1; give the address of node-0" in (entry.coordinator.last_error or "")
        with pytest.raises(NotReady):
            entry.pipeline.submit(twins[0].request)
        await entry.serve(plan.with_epoch(entry.coordinator.newest_epoch + 1), hosts)
        await finish(entry.pipeline.submit(twins[0].request), twins[0])
