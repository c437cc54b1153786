"""What goes over the wire, seen by a tap on the entry's link: batches, mixed prefill, several steps in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from splitinfer.segment_runtime.channel import FrameLink
from splitinfer.segment_runtime.engine.port import Engine
from splitinfer.segment_runtime.entry.generate import GenerationRequest, SamplingParams
from splitinfer.segment_runtime.entry.pipeline import Pipeline
from splitinfer.segment_runtime.entry.sessions import Limits
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from tests.runtime.pipeline.conftest import CONTEXT
from tests.support.models import Case
from tests.support.pipelines import Entry, cut, plan_for, running_entry
from tests.support.twins import Twin


@dataclass
class Tap:
    """Frames with rows that left the entry, and how many of them were on their way after each."""

    sent: list[pb.Frame] = field(default_factory=list)
    returned: int = 0
    in_flight: list[int] = field(default_factory=list)

    def rows(self) -> list[list[int]]:
        """Rows of each session, frame by frame."""
        return [[piece.count for piece in frame.sessions] for frame in self.sent]


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Tap:
    """Listens to every frame that the entry sends and takes."""
    tap = Tap()
    send, take = FrameLink.send, Pipeline.on_frame

    async def heard(link: FrameLink, frame: pb.Frame) -> None:
        if frame.sessions:
            tap.sent.append(frame)
            tap.in_flight.append(len(tap.sent) - tap.returned)
        await send(link, frame)

    def taken(pipeline: Pipeline, epoch: int, frame: pb.Frame) -> None:
        tap.returned += bool(frame.sessions)
        take(pipeline, epoch, frame)

    monkeypatch.setattr(FrameLink, "send", heard)
    monkeypatch.setattr(Pipeline, "on_frame", taken)
    return tap


async def serve_two(entry: Entry, hosts: dict[str, str]) -> None:
    """The small model over two hosts."""
    segments = cut(entry.model, [2], ["node-0", "node-1"])
    await entry.serve(plan_for(entry.model, segments, context=CONTEXT), hosts)


async def finish_all(entry: Entry, twins: Sequence[Twin]) -> None:
    """All of them at once, each with the tokens of its twin."""

    async def one(twin: Twin) -> None:
        tokens = [event.token async for event in entry.pipeline.submit(twin.request)]
        assert tuple(tokens) == twin.tokens

    await asyncio.gather(*(one(twin) for twin in twins))


async def test_running_sessions_share_their_steps(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin], tap: Tap
) -> None:
    """Six sessions at once take little more than the steps of the longest one."""
    six = twins[:6]
    async with running_entry(case.stored, engine=engine) as entry:
        await serve_two(entry, hosts)
        await finish_all(entry, six)
    decode = [rows for rows in tap.rows() if rows and set(rows) == {1}]
    assert max(len(rows) for rows in decode) == 6
    longest = max(len(twin.tokens) for twin in six)
    assert len(tap.rows()) <= 1.5 * longest + 10, "they did not run together"


async def test_a_prompt_is_fed_in_chunks_between_the_tokens_of_others(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin], tap: Tap
) -> None:
    """While one prompt of 60 tokens goes in by fours, the other session gets a token with every chunk.

    One step at a time: with two, the prompt may come while a token is on its way, and each then has its own steps.
    """
    limits = Limits(kv_budget_tokens=1, prefill_chunk=16, mixed_prefill_chunk=4)
    long = GenerationRequest(tuple(range(5, 65)), 4, SamplingParams(temperature=0.0))
    short = max(twins, key=lambda twin: len(twin.tokens))
    async with running_entry(case.stored, engine=engine, limits=limits, micro_batches=1) as entry:
        await serve_two(entry, hosts)
        stream = entry.pipeline.submit(short.request)
        tokens = [(await anext(stream)).token for _ in range(3)]
        other = entry.pipeline.submit(long)
        tokens += [event.token async for event in stream]
        assert tuple(tokens) == short.tokens
        assert len([event async for event in other]) == 4
    mixed = [sorted(rows) for rows in tap.rows() if len(rows) == 2 and max(rows) > 1]
    assert mixed == [[1, 4]] * 15, "60 tokens in chunks of 4, each beside a token of the other"


async def test_several_micro_batches_are_on_their_way_at_once(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin], tap: Tap
) -> None:
    """Two hosts, two groups of decoding sessions: while one is on the second host, the other is on the first."""
    limits = Limits(kv_budget_tokens=1, min_sessions=2)
    async with running_entry(case.stored, engine=engine, limits=limits) as entry:
        await serve_two(entry, hosts)
        await finish_all(entry, twins[:8])
    rows = tap.rows()
    together = [n for n, counts in zip(tap.in_flight, rows, strict=True) if set(counts) == {1}]
    assert max(tap.in_flight) == 2
    assert sum(n == 2 for n in together) > len(together) / 2, "the groups do not overlap"
    assert max(len(counts) for counts in rows if set(counts) == {1}) == 4, (
        "eight decode as two groups of four"
    )


async def test_the_chunks_of_one_prompt_fill_the_chain(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin], tap: Tap
) -> None:
    """One session alone: its second chunk is on the first host while the next host has the first; same tokens."""
    one = max(twins, key=lambda twin: len(twin.request.prompt))
    length = len(one.request.prompt)
    limits = Limits(kv_budget_tokens=1, prefill_chunk=512, mixed_prefill_chunk=length // 2)
    async with running_entry(case.stored, engine=engine, limits=limits) as entry:
        await serve_two(entry, hosts)
        await finish_all(entry, [one])
    assert tap.rows()[:2] == [[-(-length // 2)], [length // 2]]
    assert tap.in_flight[:2] == [1, 2]


async def test_one_micro_batch_at_a_time_where_that_is_asked_for(
    case: Case, engine: Engine, hosts: dict[str, str], twins: list[Twin], tap: Tap
) -> None:
    """``micro_batches=1`` overrides one per segment."""
    limits = Limits(kv_budget_tokens=1, min_sessions=2)
    async with running_entry(case.stored, engine=engine, limits=limits, micro_batches=1) as entry:
        await serve_two(entry, hosts)
        await finish_all(entry, twins[:4])
    assert set(tap.in_flight) == {1}
