"""The values of the entry's times, not only how often there was one: on a clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from tests.support.hand_chain import CONTEXT, HandChain, answer, hand_chain, token_of


@dataclass
class Clock:
    """Stands still until a test moves it."""

    now: float = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def move(self, seconds: float) -> None:
        """Forward."""
        self.now += seconds


def seconds(chain: HandChain, name: str, **labels: str) -> tuple[float, float]:
    """How many observations a histogram has, and their sum."""
    full = f"splitinfer_entry_{name}_seconds"
    values = [chain.registry.get_sample_value(f"{full}_{end}", labels) for end in ("count", "sum")]
    return values[0] or 0.0, round(values[1] or 0.0, 9)


def bucket(chain: HandChain, name: str, below: str, **labels: str) -> float | None:
    """How many observations were at most ``below``."""
    return chain.registry.get_sample_value(f"splitinfer_entry_{name}_seconds_bucket", {**labels, "le": below})


TIMINGS = (
    pb.HopTiming(hop=0, queue_us=10_000, decode_us=20_000, compute_us=400_000, encode_us=3_000),
    pb.HopTiming(hop=1, queue_us=50_000, decode_us=600, compute_us=700_000, encode_us=80_000),
)
INSIDE = 1.2636


async def test_a_step_s_time_is_told_by_hop_and_part_and_what_is_left_is_the_wire() -> None:
    """Each part with its own value; decode and encode of a hop together are its serialising."""
    clock = Clock()
    async with hand_chain(clock) as chain:
        link = chain.switch(1)
        stream = chain.submit(1)
        frame = await link.frame()
        clock.now += 3.0
        chain.pipeline.on_frame(1, answer(frame, 7, timings=TIMINGS))
        assert await token_of(stream) == 7
        expected = {
            ("0", "queue"): 0.01,
            ("0", "serialise"): 0.023,
            ("0", "compute"): 0.4,
            ("1", "queue"): 0.05,
            ("1", "serialise"): 0.0806,
            ("1", "compute"): 0.7,
        }
        for (hop, part), value in expected.items():
            assert seconds(chain, "hop", hop=hop, part=part) == (1, value), (hop, part)
        assert seconds(chain, "step", part="ring") == (1, 3.0)
        assert seconds(chain, "step", part="wire") == (1, round(3.0 - INSIDE, 9))
        assert seconds(chain, "step", part="return_queue") == (1, 0.0)
        assert (bucket(chain, "step", "2.0", part="ring"), bucket(chain, "step", "5.0", part="ring")) == (
            0,
            1,
        )


async def test_hops_that_took_longer_than_the_ring_leave_no_time_for_the_wire() -> None:
    """Clocks of hosts may run differently; a negative time would spoil the sum for ever."""
    clock = Clock()
    async with hand_chain(clock) as chain:
        link = chain.switch(1)
        stream = chain.submit(1)
        frame = await link.frame()
        clock.now += 1.0
        chain.pipeline.on_frame(1, answer(frame, 7, timings=TIMINGS))
        await token_of(stream)
        assert seconds(chain, "step", part="wire") == (1, 0.0)


async def test_a_frame_that_waits_for_the_head_waits_in_the_return_queue_not_in_the_ring() -> None:
    """Two steps are in flight, and the second comes back while the head has the first."""
    clock = Clock()
    async with hand_chain(clock) as chain:
        link = chain.switch(1)
        streams, frames = [], []
        for _ in range(2):
            streams.append(chain.submit(1))
            frames.append(await link.frame())
        chain.head.gate.clear()
        clock.now += 1.0
        chain.pipeline.on_frame(1, answer(frames[0], 7))
        clock.now += 2.0
        chain.pipeline.on_frame(1, answer(frames[1], 8))
        await chain.in_head()
        clock.now += 4.0
        chain.head.gate.set()
        assert [await token_of(stream) for stream in streams] == [7, 8]
        assert seconds(chain, "step", part="ring") == (2, 1.0 + 3.0)
        waited = seconds(chain, "step", part="return_queue")
        assert waited == (2, 2.0 + 4.0), "the first until the head was asked, the second until it was free"


async def test_the_parts_that_the_entry_computes_itself_have_their_own_times() -> None:
    """Embedding before a step leaves; decoding the frame, the head and the draw when it is back."""
    clock = Clock()
    async with hand_chain(clock) as chain:
        chain.embedder.on_call = lambda: clock.move(0.25)
        chain.head.on_call = lambda: clock.move(0.5)
        link = chain.switch(1)
        stream = chain.submit(1)
        chain.pipeline.on_frame(1, answer(await link.frame(), 7))
        await token_of(stream)
        assert seconds(chain, "step", part="embed") == (1, 0.25)
        assert seconds(chain, "step", part="head") == (1, 0.5)
        assert seconds(chain, "step", part="decode") == (1, 0.0)
        assert seconds(chain, "step", part="sample") == (1, 0.0)


async def test_a_request_s_wait_ends_with_its_first_step_and_counts_once() -> None:
    """Four fill the plan at once, the fifth waits until one of them has ended; later steps add nothing."""
    clock = Clock()
    async with hand_chain(clock) as chain:
        link = chain.switch(1)
        first = chain.submit(1, prompt=range(CONTEXT - 1))
        for _ in range(3):
            chain.submit(2, prompt=range(CONTEXT - 2))
        last = chain.submit(2)
        frame = await link.frame()
        assert {piece.session for piece in frame.sessions} == {1, 2, 3, 4}
        assert seconds(chain, "queue") == (4, 0.0)
        clock.now += 7.0
        chain.pipeline.on_frame(1, answer(frame, 7))
        await token_of(first)
        second = await link.frame()
        while 5 not in {piece.session for piece in second.sessions}:
            chain.pipeline.on_frame(1, answer(second, 7))
            second = await link.frame()
        assert seconds(chain, "queue") == (5, 7.0)
        clock.now += 1.0
        chain.pipeline.on_frame(1, answer(second, 8))
        await token_of(last)
        await link.frame()
        assert seconds(chain, "queue") == (5, 7.0)


async def test_the_latest_ttft_and_tpot_are_those_of_the_clock() -> None:
    """From the request to its first token, and from each token to the next; a replay is no first token again."""
    clock = Clock()
    async with hand_chain(clock) as chain:
        link = chain.switch(1)
        stream = chain.submit(3)
        frame = await link.frame()
        clock.now += 2.0
        chain.pipeline.on_frame(1, answer(frame, 7))
        await token_of(stream)
        link = chain.switch(2)
        for wait in (0.5, 0.25):
            frame = await link.frame()
            while not frame.sessions[0].keep:
                chain.pipeline.on_frame(2, answer(frame, 7))
                frame = await link.frame()
            clock.now += wait
            chain.pipeline.on_frame(2, answer(frame, 7))
            await token_of(stream)
        observed = chain.pipeline.observed
        assert list(observed.recent_ttft) == [pytest.approx(2.0)]
        assert list(observed.recent_tpot) == [pytest.approx(0.5), pytest.approx(0.25)]
        assert observed.tokens_total == 3
