"""Plans and repairs on hosts whose memory is short: what does not fit is refused, and what must fit is made room for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from splitinfer.segment_runtime.engine.port import Engine
from tests.runtime.pipeline.conftest import CONTEXT
from tests.support.fleet import Load, assert_no_leak
from tests.support.forked import ForkedHost, fork_host
from tests.support.models import Case
from tests.support.pipelines import cut, plan_for, running_entry
from tests.support.streams import finish, until
from tests.support.twins import Twin


@asynccontextmanager
async def tight_hosts(
    case: Case, root: Path, logs: Path, blocks: int
) -> AsyncIterator[dict[str, ForkedHost]]:
    """Three hosts with room for ``blocks`` blocks each, and their KV."""
    index = case.stored.index
    each = index.block_weight_bytes(0, 4) + index.kv_bytes_per_token(4) * CONTEXT * 8
    options = ("--memory-limit-bytes", str(blocks * each))
    found = {name: fork_host(root / "models", name, logs, *options) for name in ("a", "b", "c")}
    try:
        yield found
    finally:
        for host in found.values():
            host.kill()


async def test_a_plan_that_does_not_fit_is_refused_and_the_old_one_serves_on(
    case: Case, engine: Engine, root: Path, logs: Path, twins: list[Twin]
) -> None:
    """The refusal has the host's numbers; no stream notices."""
    async with tight_hosts(case, root, logs, 3) as found, running_entry(case.stored, engine=engine) as entry:
        addresses = {name: host.address for name, host in found.items()}
        fits = plan_for(case.stored, cut(case.stored, [3], ["a", "b"]), context=CONTEXT)
        await entry.serve(fits, addresses)
        async with Load(entry, twins) as load:
            await load.more_tokens(10)
            whole = plan_for(case.stored, cut(case.stored, [], ["a"]), epoch=2, context=CONTEXT)
            entry.coordinator.accept(whole, addresses)
            await until(lambda: entry.coordinator.target_epoch is None, "the refusal")
            error = entry.coordinator.last_error
            assert error is not None
            assert "a would need" in error
            assert "its limit is" in error
            assert (entry.coordinator.state, entry.pipeline.epoch) == ("serving", 1)
            await load.more_tokens(10)
        assert load.wrong == []
        await assert_no_leak(entry, addresses)


async def test_a_repair_that_needs_the_room_of_the_broken_plan_takes_it(
    case: Case, engine: Engine, root: Path, logs: Path, twins: list[Twin]
) -> None:
    """`a` holds two blocks and is to hold three others: only without the old ones is there room."""
    async with tight_hosts(case, root, logs, 3) as found, running_entry(case.stored, engine=engine) as entry:
        addresses = {name: host.address for name, host in found.items()}
        await entry.serve(
            plan_for(case.stored, cut(case.stored, [3], ["b", "a"]), context=CONTEXT), addresses
        )
        stream = entry.pipeline.submit(twins[0].request)
        await anext(stream)
        found["b"].kill()
        rest = [event.token async for event in stream]
        assert tuple(rest) == twins[0].tokens[1:]
        assert [str(s) for s in entry.pipeline.plan.segments] == ["a[0:3]", "c[3:5]"]  # type: ignore[union-attr]


async def test_without_memory_the_streams_wait_for_a_host_to_come_back(
    case: Case, engine: Engine, root: Path, logs: Path, twins: list[Twin]
) -> None:
    """Two hosts of three are lost: what is left has no room. One comes back elsewhere, and the stream goes on."""
    async with tight_hosts(case, root, logs, 3) as found, running_entry(case.stored, engine=engine) as entry:
        addresses = {name: host.address for name, host in found.items()}
        await entry.serve(
            plan_for(case.stored, cut(case.stored, [3], ["a", "b"]), context=CONTEXT), addresses
        )
        stream = entry.pipeline.submit(twins[0].request)
        first = await anext(stream)
        found["b"].kill()
        found["c"].kill()
        await until(lambda: "room for 3 of 5 blocks" in (entry.coordinator.last_error or ""), "the reason")
        assert (entry.coordinator.state, entry.pipeline.ready()) == ("recovering", False)
        waiting = entry.pipeline.submit(twins[1].request)
        found["b"] = fork_host(root / "models", "b", logs)
        entry.coordinator.update_hosts({"b": found["b"].address})
        assert (first.token, *[event.token async for event in stream]) == twins[0].tokens
        await finish(waiting, twins[1])
