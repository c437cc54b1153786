"""A chain that is put together again and again, and breaks at its first step each time."""

from __future__ import annotations

import asyncio

import pytest

from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry import pipeline as pipeline_module
from splitinfer.segment_runtime.entry.generate import PipelineFailed
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import FrameError
from tests.support.models import Case
from tests.support.pipelines import cut, plan_for, running_entry
from tests.support.twins import Twin
from tests.support.waiting import until


async def test_recoveries_without_a_step_slow_down_and_end_the_request(
    case: Case,
    engine: Engine,
    hosts: dict[str, str],
    twins: list[Twin],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every frame that comes back is refused: few recoveries are tried, the request fails at the deadline.

    Without a bound the entry ran through epochs as fast as its hosts answered, and the request hung for ever.
    When the cause is gone, the next request is served.
    """

    def refuse(*_: object) -> None:
        raise FrameError(pb.BAD_FRAME, "dims", "a defect of this test")

    async with running_entry(case.stored, engine=engine) as entry:
        entry.coordinator.breakage.recovery_seconds = 4.0
        first = plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"]), context=96)
        await entry.serve(first, hosts)
        before = entry.pipeline.epoch
        with monkeypatch.context() as patch:
            patch.setattr(pipeline_module, "check_return", refuse)
            with pytest.raises(PipelineFailed, match="a defect of this test"):
                async for _ in entry.pipeline.submit(twins[0].request):
                    pass
        assert 1 <= entry.pipeline.epoch - before <= 6
        assert entry.coordinator.state == "failed"
        await asyncio.to_thread(
            until, entry.pipeline.ready, seconds=30, what="the chain to be tried once more"
        )
        request = twins[0].request
        events = await entry.generate(request.prompt, request.max_tokens, request.sampling)
        assert list(twins[0].tokens) == [event.token for event in events]


async def test_a_request_that_comes_after_the_deadline_has_one_of_its_own(
    case: Case,
    engine: Engine,
    hosts: dict[str, str],
    twins: list[Twin],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The chain is put together once more and breaks at its first step again: that request ends as well."""

    def refuse(*_: object) -> None:
        raise FrameError(pb.BAD_FRAME, "dims", "a defect of this test")

    async with running_entry(case.stored, engine=engine) as entry:
        entry.coordinator.breakage.recovery_seconds = 2.0
        first = plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"]), context=96)
        await entry.serve(first, hosts)
        monkeypatch.setattr(pipeline_module, "check_return", refuse)
        for _ in range(3):
            await asyncio.to_thread(until, entry.pipeline.ready, seconds=30, what="another try")
            stream = entry.pipeline.submit(twins[0].request)
            with pytest.raises(PipelineFailed):
                await asyncio.wait_for(anext(stream), 30)
