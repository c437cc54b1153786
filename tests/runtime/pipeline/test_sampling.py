"""Sampling parameters all the way through real hosts, against the same rules over the engine's own logits."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams
from tests.runtime.pipeline.conftest import CONTEXT
from tests.support.chains import Chain
from tests.support.models import Case
from tests.support.pipelines import cut, plan_for, running_entry

PROMPT = (3, 14, 15, 92, 65)
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def expected(case: Case, engine: Engine) -> Callable[[float, float], list[int]]:
    """Greedy tokens under penalties, one step at a time over one range."""

    def tokens(frequency: float, presence: float) -> list[int]:
        chain = Chain.load(engine, case.stored, [], "float32")
        chain.open(1, CONTEXT)
        fed, position, found = list(PROMPT), 0, Counter[int]()
        output: list[int] = []
        for _ in range(NEW_TOKENS):
            logits = chain.head.logits(chain.step([(1, position, fed)])[-1:])[0].astype(np.float64)
            position += len(fed)
            for token, count in found.items():
                logits[token] -= frequency * count + presence
            output.append(int(np.argmax(logits)))
            found[output[-1]] += 1
            fed = output[-1:]
        return output

    return tokens


@pytest.mark.parametrize(("frequency", "presence"), [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (0.7, 1.1)])
async def test_penalties_weigh_what_was_said_so_far(
    case: Case,
    engine: Engine,
    hosts: dict[str, str],
    expected: Callable[[float, float], list[int]],
    frequency: float,
    presence: float,
) -> None:
    """Frequency and presence penalties through the whole pipeline choose the tokens that their formula chooses."""
    params = SamplingParams(temperature=0.0, frequency_penalty=frequency, presence_penalty=presence)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"])), hosts)
        events = await entry.generate(PROMPT, NEW_TOKENS, params)
    want = expected(frequency, presence)
    assert want == [event.token for event in events]
    if frequency or presence:
        assert want != expected(0.0, 0.0), "the penalty must make a difference"


async def test_logprobs_come_through_with_their_alternatives(
    case: Case, engine: Engine, hosts: dict[str, str]
) -> None:
    """Each token has its log probability and the alternatives asked for, best first, as the logits say."""
    params = SamplingParams(temperature=0.0, top_logprobs=3)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(plan_for(case.stored, cut(case.stored, [2], ["node-0", "node-1"])), hosts)
        (event,) = await entry.generate(PROMPT, 1, params)
    chain = Chain.load(engine, case.stored, [], "float32")
    (logits,) = chain.logits(1, [PROMPT])
    logprobs = logits.double().log_softmax(0)
    best = logprobs.topk(3)
    assert [token for token, _ in event.top] == best.indices.tolist()
    assert all(
        math.isclose(a, b, abs_tol=1e-4) for (_, a), b in zip(event.top, best.values.tolist(), strict=True)
    )
    assert event.logprob is not None
    assert math.isclose(event.logprob, best.values[0].item(), abs_tol=1e-4)


async def drain(stream: AsyncIterator[object]) -> int:
    """How many tokens are left in a stream."""
    return len([event async for event in stream])


async def test_the_gauges_count_what_runs_and_what_waits(
    case: Case, engine: Engine, hosts: dict[str, str]
) -> None:
    """One session fits: while it runs one waits; steps are in flight; then nothing is. A hop's queue has been timed."""
    async with running_entry(case.stored, engine=engine) as entry:
        plan = plan_for(
            case.stored, cut(case.stored, [2], ["node-0", "node-1"]), context=CONTEXT, concurrency=1
        )
        await entry.serve(plan, hosts)

        def value(name: str, **labels: str) -> float | None:
            return entry.registry.get_sample_value(f"splitinfer_entry_{name}", labels)

        greedy = SamplingParams(temperature=0.0)
        first = entry.pipeline.submit(GenerationRequest(PROMPT, 60, greedy))
        second = entry.pipeline.submit(GenerationRequest(PROMPT, 60, greedy))
        await anext(first)
        assert (value("sessions_running"), value("sessions_waiting")) == (1, 1)
        seen = set()
        rest = asyncio.create_task(drain(first))
        while not rest.done():
            seen.add(value("micro_batches"))
            # A loop that never rests keeps the interpreter from the threads that bring the next token, a switch interval
            # at a time: on some machines for minutes.
            await asyncio.sleep(0.002)
        assert await rest == 59
        assert seen & {1.0, 2.0}, seen
        assert len([event async for event in second]) == 60
        assert (value("sessions_running"), value("sessions_waiting")) == (0, 0)
        for hop in ("0", "1"):
            assert (value("hop_seconds_count", hop=hop, part="queue") or 0) >= 100
