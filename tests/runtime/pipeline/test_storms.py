"""Cancels at random moments and many requests: nothing is left of them, on the hosts or in the entry."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from random import Random

import psutil
import pytest

from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.generate import GenerationRequest, PipelineFailed, SamplingParams
from tests.runtime.pipeline.conftest import CONTEXT, NODES
from tests.support.fleet import Fleet, assert_no_leak, random_plan
from tests.support.leaks import NOTHING, leak, traced
from tests.support.models import Case
from tests.support.pipelines import Entry, cut, plan_for, running_entry
from tests.support.twins import Twin

REQUESTS = int(os.environ.get("SPLITINFER_TEST_REQUESTS", "300"))
"""`make soak` raises it to 1,000."""

GROWTH_BYTES = 3 * 1024 * 1024
"""What a process may grow by over `REQUESTS` requests after as many for warm-up. A leak of one frame per request
would be 300 x 40 kB = 12 MB, of one session's KV 300 x 120 kB = 36 MB; what is left is noise of the allocators."""


async def assert_entry_is_empty(entry: Entry, tasks: int) -> None:
    """No session, no step, no request, no task that was not there before."""
    pipeline = entry.pipeline
    async with asyncio.timeout(30):
        while pipeline._scheduler.in_flight or len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    scheduler = pipeline._scheduler
    left = (
        scheduler.running,
        scheduler.waiting,
        scheduler._released,
        pipeline._requests._live,
        pipeline.flight._sent,
    )
    assert not any(left), left


@pytest.mark.parametrize("seed", [1, 2])
async def test_sessions_cancelled_at_random_moments_leave_nothing(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin], seed: int
) -> None:
    """Waiting, in the middle of a prompt, between tokens, twice, at the end; the others give their tokens."""
    rng = Random(seed)
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(random_plan(rng, entry, NODES, context=CONTEXT), hosts)
        await asyncio.sleep(0)
        tasks = len(asyncio.all_tasks())

        async def one(twin: Twin, patience: int) -> None:
            stream = entry.pipeline.submit(twin.request)
            tokens = []
            async for event in stream:
                tokens.append(event.token)
                if len(tokens) >= patience:
                    await stream.aclose()
                    await stream.aclose()
            assert tuple(tokens) == twin.tokens[: max(patience, 1)]

        async def gone_before_it_began(twin: Twin) -> None:
            stream = entry.pipeline.submit(twin.request)
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
            await stream.aclose()

        work = []
        for _ in range(40):
            twin = rng.choice(twins)
            patience = rng.choice([1, 2, 5, 10, 1000])
            work.append(one(twin, patience) if rng.random() < 0.7 else gone_before_it_began(twin))
        await asyncio.gather(*work)
        await assert_entry_is_empty(entry, tasks)
        await assert_no_leak(entry, hosts)


async def test_a_reader_that_waits_is_woken_when_its_stream_is_closed(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """By another task: it must not wait for ever for a token that nobody will send."""
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(random_plan(Random(1), entry, NODES, context=CONTEXT), hosts)
        await entry.pipeline.pause()
        stream = entry.pipeline.submit(twins[0].request)
        reader = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await asyncio.wait_for(reader, 5) is None


async def test_a_token_that_is_not_in_the_vocabulary_fails_its_request_alone(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """The pump of the entry must outlive it."""
    bad = GenerationRequest((3, case.stored.index.vocab_size), 4, SamplingParams(temperature=0.0))
    async with running_entry(case.stored, engine=engine) as entry:
        await entry.serve(random_plan(Random(1), entry, NODES, context=CONTEXT), hosts)
        streams = [entry.pipeline.submit(twin.request) for twin in twins[:2]]
        refused = entry.pipeline.submit(bad)
        with pytest.raises(PipelineFailed, match="the vocabulary has ids 0 to 198"):
            await anext(refused)
        for stream, twin in zip(streams, twins, strict=False):
            assert tuple([event.token async for event in stream]) == twin.tokens
        await assert_no_leak(entry, hosts)


ROUNDS = 5
OF_A_REQUEST = {"LiveRequest", "TokenStream", "Session", "TokenEvent"}
"""What the entry makes for a request, by name; while requests run there are some, after them none."""


def census() -> Counter[str]:
    """Live objects of our own types, by name."""
    gc.collect()
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(kind.__name__ for kind in kinds if str(kind.__module__).startswith("splitinfer."))


async def test_memory_is_flat_over_many_requests(
    case: Case, engine: Engine, fleet: Fleet, hosts: dict[str, str], twins: list[Twin]
) -> None:
    """No object of a request is left in the entry, no bytes of Python's, and no resident bytes anywhere.

    Some requests are cancelled. Objects and Python's bytes are exact where resident bytes are not: what is kept of a
    request is a few hundred bytes, which an allocator has to spare.
    """
    rng = Random(5)
    me = psutil.Process()
    others = census()  # modules of other tests hold some of their own
    during: set[str] = set()

    async def some(count: int) -> None:
        gate = asyncio.Semaphore(8)

        async def one(twin: Twin, patience: int) -> None:
            async with gate:
                stream = entry.pipeline.submit(twin.request)
                tokens = 0
                async for _ in stream:
                    tokens += 1
                    if tokens == 2 and not during >= OF_A_REQUEST:
                        during.update(census() - others)
                    if tokens == patience:
                        await stream.aclose()

        await asyncio.gather(*(one(rng.choice(twins), rng.choice([3, 99, 99])) for _ in range(count)))
        await assert_no_leak(entry, hosts)
        gc.collect()

    def resident() -> dict[str, int]:
        return {"entry": int(me.memory_info().rss)} | {n: fleet.resident_bytes(n) for n in hosts}

    async with running_entry(case.stored, engine=engine) as entry:
        segments = cut(case.stored, [1, 2, 4], ["node-0", "node-1", "node-0", "node-2"])
        await entry.serve(plan_for(case.stored, segments, context=CONTEXT), hosts)
        await some(REQUESTS)
        bytes_before = resident()
        with traced() as held:
            await some(REQUESTS // ROUNDS)
            sizes = [held()]
            for _ in range(ROUNDS):
                await some(REQUESTS // ROUNDS)
                sizes.append(held())
        grown = {name: size - bytes_before[name] for name, size in resident().items()}
    # Out here, where the entry is stopped but still held, no frame of its tasks has the last step's requests at hand.
    left = {name: count for name, count in (census() - others).items() if name in OF_A_REQUEST}
    assert during >= OF_A_REQUEST, "the census does not know what a request is made of any more"
    assert left == {}
    assert leak(sizes, REQUESTS // ROUNDS) < NOTHING, sizes
    assert max(grown.values()) < GROWTH_BYTES, grown
