"""What a frame does to a hop, without a socket and without an engine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from splitinfer.segment_runtime.engine.port import (
    Array,
    Identity,
    KvBlob,
    SessionError,
    SessionRows,
    StepInterrupted,
)
from splitinfer.segment_runtime.host.hop import Hop
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import Expectation, array_of, put_array

EXPECTED = Expectation(
    epoch=1, hop=0, dtype="float32", hidden_size=2, kv_budget_tokens=20, max_context_tokens=10
)


class FakeRange:
    """Adds one to every value; refuses to compute the session `bad`."""

    start, stop = 0, 1
    weight_bytes, kv_bytes_per_token = 8, 4
    identity = Identity("fake", "1", "none", exact=False)

    def __init__(self, bad: int = 0) -> None:
        self.bad = bad
        self.in_step: Callable[[], None] = lambda: None
        self.open_sessions: dict[int, tuple[int, int]] = {}

    @property
    def kv_bytes(self) -> int:
        """By capacity."""
        return sum(capacity for capacity, _ in self.open_sessions.values()) * self.kv_bytes_per_token

    def open(self, session: int, capacity: int) -> None:
        """Once."""
        assert session not in self.open_sessions
        self.open_sessions[session] = (capacity, 0)

    def close(self, session: int) -> None:
        """Once."""
        del self.open_sessions[session]

    def length(self, session: int) -> int:
        """Tokens held."""
        return self.open_sessions[session][1]

    def step(
        self, hidden: Array, batch: Sequence[SessionRows], interrupt: threading.Event | None = None
    ) -> Array:
        """Rows and lengths grow, unless somebody interrupts in the middle."""
        self.in_step()
        if interrupt is not None and interrupt.is_set():
            raise StepInterrupted("the step was given up")
        for rows in batch:
            if rows.session == self.bad:
                raise SessionError("a bad session")
            self.open_sessions[rows.session] = (
                self.open_sessions[rows.session][0],
                rows.position + rows.count,
            )
        added: Array = np.asarray(hidden, np.float32) + 1
        return added

    def export_kv(self, session: int, begin: int, end: int) -> KvBlob:
        """Not here."""
        raise NotImplementedError

    def import_kv(self, session: int, blob: KvBlob) -> None:
        """Not here."""
        raise NotImplementedError

    def drop(self) -> None:
        """Everything."""
        self.open_sessions.clear()


def make(bad: int = 0, *, last: bool = False) -> tuple[Hop, FakeRange]:
    """A hop over a fake range."""
    fake = FakeRange(bad)
    return Hop(EXPECTED, fake, "next:1", last), fake


def frame(step: int, *sessions: tuple[int, int, int, int], released: tuple[int, ...] = ()) -> pb.Frame:
    """Sessions as (id, position, count, capacity); the last row of each is kept."""
    made = pb.Frame(epoch=1, step=step, released=released)
    for session, position, count, capacity in sessions:
        made.sessions.add(session=session, position=position, count=count, keep=1, capacity=capacity)
    rows = sum(count for _, _, count, _ in sessions)
    put_array(made, np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), "float32")
    return made


def clock() -> float:
    """Every look is a second later."""
    return float(next(_SECONDS))


_SECONDS = itertools.count(100)


def test_a_frame_is_computed_and_goes_on_with_its_times() -> None:
    """Sessions, step and epoch go on; the hop counts up; each part of the time has its second."""
    hop, _ = make()
    now = clock()
    outcome = hop.take(frame(1, (7, 0, 3, 9)), now, clock)
    assert outcome.error is None
    out = outcome.frame
    assert out is not None
    assert (out.epoch, out.step, out.hop) == (1, 1, 1)
    assert array_of(out).tolist() == [[1, 2], [3, 4], [5, 6]]
    timing = out.timings[0]
    parts = (timing.hop, timing.queue_us, timing.decode_us, timing.compute_us, timing.encode_us)
    assert parts == (0, 10**6, 10**6, 10**6, 10**6)


def test_each_part_of_the_time_is_where_it_was_spent() -> None:
    """Waiting 1 s, decoding 2, computing 4, encoding 8: no part has another's."""
    hop, _ = make()
    looks = iter([101.0, 103.0, 107.0, 115.0])
    outcome = hop.take(frame(1, (7, 0, 3, 9)), 100.0, lambda: next(looks))
    assert outcome.frame is not None
    timing = outcome.frame.timings[0]
    parts = (timing.queue_us, timing.decode_us, timing.compute_us, timing.encode_us)
    assert parts == (10**6, 2 * 10**6, 4 * 10**6, 8 * 10**6)
    assert outcome.times is not None
    assert (outcome.times.queue, outcome.times.compute) == (1.0, 4.0)


def test_the_last_hop_sends_only_the_rows_that_are_kept() -> None:
    """The entry wants one row of three."""
    hop, _ = make(last=True)
    out = hop.take(frame(1, (7, 0, 3, 9)), 0.0, clock).frame
    assert out is not None
    assert array_of(out).tolist() == [[5, 6]]


def test_a_refused_frame_changes_nothing() -> None:
    """Not even what it was to release: its fields cannot be trusted."""
    hop, fake = make()
    hop.take(frame(1, (7, 0, 3, 9)), 0.0, clock)
    outcome = hop.take(frame(2, (7, 5, 1, 9), released=(7,)), 0.0, clock)
    assert outcome.frame is None
    assert outcome.error is not None
    assert outcome.error.field == "sessions[0].position"
    assert (fake.open_sessions, hop.last_step) == ({7: (9, 3)}, 1)


def test_a_failed_step_frees_its_sessions_and_passes_on_what_it_releases() -> None:
    """Half of its blocks may have appended; and the hops behind must release what this one does."""
    hop, fake = make(bad=8)
    hop.take(frame(1, (6, 0, 1, 4), (7, 0, 1, 4)), 0.0, clock)
    outcome = hop.take(frame(2, (7, 1, 1, 4), (8, 0, 1, 4), released=(6,)), 0.0, clock)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == (pb.COMPUTE_FAILED, "SessionError: a bad session")
    assert (fake.open_sessions, hop.capacities) == ({}, {})
    out = outcome.frame
    assert out is not None
    assert (list(out.released), len(out.sessions), list(out.dims)) == ([6], 0, [0, 2])
    following = Hop(Expectation(1, 1, "float32", 2, 20, 10), FakeRange(), "next:1", last=True)
    assert following.take(out, 0.0, clock).error is None, "the next hop must take it"


def test_a_session_without_room_is_refused_but_the_release_is_done() -> None:
    """Everything in the frame is right but the room."""
    hop, fake = make()
    hop.take(frame(1, (6, 0, 1, 10), (7, 0, 1, 10)), 0.0, clock)
    outcome = hop.take(frame(2, (8, 0, 1, 10), (9, 0, 1, 10), released=(6,)), 0.0, clock)
    assert outcome.error is not None
    assert outcome.error.code == pb.KV_EXHAUSTED
    assert outcome.frame is not None
    assert list(fake.open_sessions) == [7]


def test_a_fenced_hop_takes_nothing() -> None:
    """A newer epoch serves, or this one was released."""
    hop, fake = make()
    hop.fenced = "epoch 2 serves"
    outcome = hop.take(frame(1, (7, 0, 1, 4)), 0.0, clock)
    assert outcome.error is not None
    assert (outcome.error.code, str(outcome.error)) == (
        pb.WRONG_EPOCH,
        "epoch: 1 is fenced off: epoch 2 serves",
    )
    assert not fake.open_sessions


@pytest.mark.parametrize("released", [(7,), (7, 99)])
def test_a_release_may_come_for_what_is_not_open(released: tuple[int, ...]) -> None:
    """It may come twice, after a step that failed."""
    hop, fake = make()
    hop.take(frame(1, (7, 0, 1, 4)), 0.0, clock)
    for step in (2, 3):
        assert hop.take(frame(step, released=released), 0.0, clock).error is None
    assert not fake.open_sessions


def test_a_forgotten_session_is_freed_before_the_frame_that_releases_it() -> None:
    """It is in no step: gone at once. The late release is no error, and only then may its number begin anew."""
    hop, fake = make()
    hop.take(frame(1, (7, 0, 3, 9), (8, 0, 1, 9)), 0.0, clock)
    hop.forget([7, 99])
    assert list(fake.open_sessions) == [8]
    assert hop.take(frame(2, (8, 1, 1, 9), released=(7,)), 0.0, clock).error is None
    assert hop.forgotten == {99}
    assert hop.take(frame(3, (7, 0, 1, 9)), 0.0, clock).error is None


def test_a_step_of_forgotten_sessions_only_ends_in_the_middle() -> None:
    """The engine is interrupted, nothing is left open, and what the frame releases goes on to the next hop."""
    hop, fake = make()
    hop.take(frame(1, (6, 0, 1, 4), (7, 0, 1, 4)), 0.0, clock)
    fake.in_step = lambda: hop.forget([7])
    outcome = hop.take(frame(2, (7, 1, 2, 4), released=(6,)), 0.0, clock)
    assert outcome.error is not None
    assert outcome.error.code == pb.ABANDONED
    assert outcome.frame is not None
    assert (list(outcome.frame.released), len(outcome.frame.sessions)) == ([6], 0)
    assert (fake.open_sessions, hop.capacities) == ({}, {})


def test_a_forgotten_session_leaves_the_others_of_its_step_alone() -> None:
    """The step goes on for who is left; what was forgotten is freed when it ends, not under it."""
    hop, fake = make()
    seen: list[int] = []

    def forget_one() -> None:
        hop.forget([7])
        seen.extend(fake.open_sessions)

    fake.in_step = forget_one
    outcome = hop.take(frame(1, (7, 0, 1, 4), (8, 0, 1, 4)), 0.0, clock)
    assert (outcome.error, seen) == (None, [7, 8])
    assert list(fake.open_sessions) == [8]


def test_a_frame_on_its_way_does_not_open_a_forgotten_session_again() -> None:
    """The word overtook the frame: it is refused as given up, its step counts, and its fields are still checked."""
    hop, fake = make()
    hop.forget([7])
    assert hop.take(frame(5, (7, 0, 3, 9)), 0.0, clock).error is not None
    assert (fake.open_sessions, hop.last_step) == ({}, 5)
    late = hop.take(frame(5, (7, 0, 3, 9)), 0.0, clock)
    assert late.error is not None
    assert (late.error.code, late.error.field) == (pb.BAD_FRAME, "step")
