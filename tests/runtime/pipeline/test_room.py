"""When there is no room: requests wait, up to a bound, then they are told."""

from __future__ import annotations

import asyncio

import pytest

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.admission import PlanRejected
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams, Saturated
from splitinfer.segment_runtime.entry.sessions import Limits
from tests.support.models import Case
from tests.support.pipelines import cut, plan_for, running_entry

CONTEXT = 64
LONG = GenerationRequest((5, 6, 7), CONTEXT - 3, SamplingParams(temperature=0.0))


def one_session(case: Case, dtype: str = "float32", epoch: int = 1) -> Plan:
    """A plan with room for one session of the whole context."""
    segments = cut(case.stored, [2], ["node-0", "node-1"])
    return plan_for(case.stored, segments, epoch=epoch, context=CONTEXT, concurrency=1, dtype=dtype)


async def test_a_full_queue_is_told_to_come_back(case: Case, engine: Engine, hosts: dict[str, str]) -> None:
    """One runs, one waits, the third is refused with Retry-After; those that were taken are all answered."""
    limits = Limits(kv_budget_tokens=1, max_waiting=1)
    async with running_entry(case.stored, engine=engine, limits=limits) as entry:
        await entry.serve(one_session(case), hosts)
        first, second = entry.pipeline.submit(LONG), entry.pipeline.submit(LONG)
        assert entry.pipeline.sessions() == (1, 1)
        with pytest.raises(Saturated) as refused:
            entry.pipeline.submit(LONG)
        assert refused.value.retry_after_seconds >= 1

        async def count(stream: object) -> int:
            return len([event async for event in stream])  # type: ignore[attr-defined]  # a token stream

        assert list(await asyncio.gather(count(first), count(second))) == [LONG.max_tokens] * 2


async def test_a_dtype_does_not_change_under_sessions(
    case: Case, engine: Engine, hosts: dict[str, str]
) -> None:
    """A plan in another dtype is refused while a session lives, and served once none does."""
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(one_session(case), hosts)
        stream = entry.pipeline.submit(LONG)
        epoch = entry.pipeline.epoch + 1
        with pytest.raises(PlanRejected) as refused:
            entry.coordinator.accept(one_session(case, "bfloat16", epoch), hosts)
        assert refused.value.field == "plan.dtype"
        await stream.aclose()
        await entry.serve(one_session(case, "bfloat16", epoch), hosts)
        assert len(await entry.generate((5, 6, 7), 4)) == 4
