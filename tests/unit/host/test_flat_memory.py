"""Sessions that come and go leave nothing on a host: not in a hop, and not in the streams around it."""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from tests.support.leaks import NOTHING, leak, traced
from tests.unit.host.test_hop import clock, frame, make
from tests.unit.host.test_stream_metrics import Looks, code_of, streams_of

SESSIONS, ROUNDS = 100, 5


def life(step: int, session: int) -> Iterator[pb.Frame]:
    """A prompt, two tokens, and the frame that releases; four steps from ``step`` on."""
    yield frame(step, (session, 0, 3, 9))
    yield frame(step + 1, (session, 3, 1, 9))
    yield frame(step + 2, (session, 4, 1, 9))
    yield frame(step + 3, released=(session,))


def test_a_hop_keeps_nothing_of_sessions_that_were_released() -> None:
    """Some end in order, some are given up in the middle; after six hundred the hop holds what it held after a few."""
    hop, fake = make()

    def some(first: int) -> None:
        for session in range(first, first + SESSIONS):
            for number, piece in enumerate(life(4 * session, session)):
                hop.take(piece, 0.0, clock)
                if number == 1 and session % 3 == 0:
                    hop.forget([session])

    with traced() as held:
        sizes = []
        for number in range(ROUNDS + 1):
            some(1 + number * SESSIONS)
            sizes.append(held())
    assert (fake.open_sessions, hop.capacities, hop.forgotten) == ({}, {}, set())
    assert leak(sizes, SESSIONS) < NOTHING, sizes


async def test_a_stream_keeps_nothing_of_frames_that_went_through_it() -> None:
    """Nor of the errors that it said back: here there is one of every frame."""
    hop, fake = make()
    times = Looks()
    async with streams_of(hop, times) as (link, _, errors):

        async def some(first: int) -> None:
            for session in range(first, first + SESSIONS):
                for piece in life(4 * session, session):
                    times.times = [0.0] * 5
                    await link.send(piece)
                    assert await code_of(errors) == pb.DOWNSTREAM_LOST

        with traced() as held:
            sizes = []
            for number in range(ROUNDS + 1):
                await some(1 + number * SESSIONS)
                sizes.append(held())
    assert fake.open_sessions == {}
    assert leak(sizes, SESSIONS) < NOTHING, sizes
