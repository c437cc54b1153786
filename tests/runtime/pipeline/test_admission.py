"""Which requests are taken while plans come and go, and when the entry is about to end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry import changes
from splitinfer.segment_runtime.entry.generate import (
    ContextTooLong,
    GenerationRequest,
    NotReady,
    SamplingParams,
)
from splitinfer.segment_runtime.entry.hosts import HostClient
from tests.runtime.pipeline.conftest import CONTEXT
from tests.support.models import Case
from tests.support.pipelines import Entry, cut, plan_for, running_entry

GREEDY = SamplingParams(temperature=0.0)


async def wait_for(entry: Entry, what: str) -> None:
    """Until the coordinator's last error says ``what``."""
    async with asyncio.timeout(30):
        while what not in (entry.coordinator.last_error or ""):  # noqa: ASYNC110  # not an event
            await asyncio.sleep(0.01)


def after(entry: Entry, more: int = 1) -> int:
    """An epoch newer than what serves; the hosts remember those of earlier tests, so that it need not be 2."""
    return entry.pipeline.epoch + more


class HeldPrepare:
    """`changes.prepare`, which waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        real = changes.prepare

        async def held(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            await self.go.wait()
            return await asyncio.ensure_future(real(*args, **kwargs))

        monkeypatch.setattr(changes, "prepare", held)


async def test_a_request_fits_every_plan_that_may_serve_next(
    case: Case, engine: Engine, hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small plan is prepared when a larger one comes, which fails: a request between them must fit the small one.

    Admitted by the larger alone, it would never have room, and everybody behind it would wait for ever.
    """
    one = cut(case.stored, [], ["node-0"])
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, one, epoch=1, context=CONTEXT, concurrency=1), hosts)
        held = HeldPrepare(monkeypatch)
        entry.coordinator.accept(
            plan_for(case.stored, one, epoch=after(entry), context=40, concurrency=1), hosts
        )
        await held.reached.wait()
        wrong = cut(case.stored, [], ["node-9"])
        entry.coordinator.accept(
            plan_for(case.stored, wrong, epoch=after(entry, 2), context=CONTEXT, concurrency=1),
            hosts | {"node-9": hosts["node-1"]},
        )
        with pytest.raises(ContextTooLong, match="the context has 40"):
            entry.pipeline.submit(GenerationRequest((3, 4, 5), 60, GREEDY))
        held.go.set()
        await entry.until_serving(after(entry))
        await wait_for(entry, "node-9")
        assert len(await entry.generate([3, 4, 5], 5)) == 5
        assert entry.pipeline.max_context_tokens == 40


async def test_a_dtype_does_not_change_under_a_session_that_came_meanwhile(
    case: Case, engine: Engine, hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session lived when the plan came, one does at its commit: the plan is given up, and the session's tokens stay."""
    one = cut(case.stored, [], ["node-0"])
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, one, epoch=1, context=CONTEXT), hosts)
        expected = [event.token for event in await entry.generate([3, 4, 5], 60)]
        held = HeldPrepare(monkeypatch)
        entry.coordinator.accept(
            plan_for(case.stored, one, epoch=after(entry), context=CONTEXT, dtype="bfloat16"), hosts
        )
        await held.reached.wait()
        stream = entry.pipeline.submit(GenerationRequest((3, 4, 5), 60, GREEDY))
        first = await anext(stream)
        held.go.set()
        tokens = [first.token, *[event.token async for event in stream]]
        await wait_for(
            entry, "sessions came while it was prepared: plan.dtype: bfloat16, but 1 sessions live in float32"
        )
        serving = entry.pipeline.plan
        assert serving is not None
        assert (tokens, serving.dtype) == (expected, "float32")


async def test_an_entry_that_ends_takes_no_request_whatever_plan_comes(
    case: Case, engine: Engine, hosts: dict[str, str]
) -> None:
    """It is not ready, and a change of plan in its grace does not make it so again."""
    one = cut(case.stored, [], ["node-0"])
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, one, epoch=1, context=CONTEXT), hosts)
        assert entry.pipeline.ready()
        entry.pipeline.closing = "the entry is shutting down"
        epoch = after(entry)
        entry.coordinator.accept(plan_for(case.stored, one, epoch=epoch, context=CONTEXT), hosts)
        async with asyncio.timeout(30):
            while entry.pipeline.epoch < epoch:  # noqa: ASYNC110  # not an event
                await asyncio.sleep(0.01)
        assert not entry.pipeline.ready()
        with pytest.raises(NotReady, match="shutting down"):
            entry.pipeline.submit(GenerationRequest((3, 4, 5), 5, GREEDY))


async def test_a_step_without_an_answer_breaks_the_chain(
    case: Case, engine: Engine, hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that is never answered: after `step_seconds` the chain is broken, repaired, and the request finishes."""
    two = cut(case.stored, [2], ["node-0", "node-1"])
    async with running_entry(case.stored, engine=engine, step_seconds=0.5) as entry:
        await entry.serve(plan_for(case.stored, two, epoch=1, context=CONTEXT), hosts)
        expected = [event.token for event in await entry.generate([3, 4, 5], 8)]
        chain = entry.pipeline._chain
        assert chain is not None

        async def swallow(_frame: object) -> None:
            """The frame is lost on its way."""

        monkeypatch.setattr(chain.link, "send", swallow)
        before = entry.pipeline.epoch
        assert [event.token for event in await entry.generate([3, 4, 5], 8)] == expected
        assert entry.pipeline.epoch > before


async def test_what_a_client_leaves_is_freed_out_of_turn(
    case: Case, engine: Engine, hosts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled session that shares no step is named to every host of the plan at once, one that never ran to none."""
    asked: list[tuple[str, int]] = []
    real = HostClient.forget

    async def spy(self: HostClient, epoch: int, sessions: list[int], timeout_seconds: float) -> None:
        asked.extend((self.node, session) for session in sessions)
        await real(self, epoch, sessions, timeout_seconds)

    monkeypatch.setattr(HostClient, "forget", spy)
    two = cut(case.stored, [2], ["node-0", "node-1"])
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, two, epoch=1, context=CONTEXT, concurrency=1), hosts)
        runs = entry.pipeline.submit(GenerationRequest((3, 4, 5), 90, GREEDY))
        waits = entry.pipeline.submit(GenerationRequest((3, 4, 5), 90, GREEDY))
        await anext(runs)
        await waits.aclose()
        await runs.aclose()
        async with asyncio.timeout(10):
            while len(asked) < 2:  # noqa: ASYNC110  # not an event
                await asyncio.sleep(0.01)
        assert sorted(asked) == [("node-0", 1), ("node-1", 1)]
        assert len(await entry.generate([3, 4, 5], 5)) == 5
