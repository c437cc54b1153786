"""Every field of a frame is checked, and ten thousand damaged frames do no harm."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import ml_dtypes
import numpy as np
import pytest

from splitinfer.segment_runtime.engine.port import SessionRows
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import (
    MAX_FRAME_ROWS,
    MAX_STEP_GAP,
    CheckedSlice,
    Expectation,
    FrameError,
    OpenSession,
    array_of,
    check_frame,
    kept_rows,
    put_array,
)
from tests.support.frames import FIELDS, Traffic, damaged, decoded

EXPECTED = Expectation(
    epoch=7, hop=2, dtype="float32", hidden_size=4, kv_budget_tokens=100, max_context_tokens=40
)
OPEN = {5: OpenSession(length=10, capacity=20), 6: OpenSession(length=3, capacity=30)}


def valid() -> pb.Frame:
    """Session 5 decodes, session 9 begins with three rows, session 6 is released."""
    frame = pb.Frame(epoch=7, hop=2, step=4, released=[6])
    frame.sessions.add(session=5, position=10, count=1, keep=1, capacity=20)
    frame.sessions.add(session=9, position=0, count=3, keep=0, capacity=40)
    put_array(frame, np.arange(16, dtype=np.float32).reshape(4, 4), "float32")
    frame.timings.extend([pb.HopTiming(hop=0), pb.HopTiming(hop=1)])
    return frame


def check(frame: pb.Frame, last_step: int = 3) -> tuple[CheckedSlice, ...]:
    """Against the sessions that are open, less those that the frame releases."""
    reserved = sum(s.capacity for number, s in OPEN.items() if number not in frame.released)
    return check_frame(frame, EXPECTED, OPEN.get, reserved, last_step)


def test_a_valid_frame_gives_its_slices_in_order() -> None:
    """Which sessions begin is known from what is open."""
    assert check(valid()) == (
        CheckedSlice(SessionRows(5, 10, 1), keep=1, capacity=20, opens=False),
        CheckedSlice(SessionRows(9, 0, 3), keep=0, capacity=40, opens=True),
    )


def test_a_frame_that_only_releases_has_no_rows() -> None:
    """Zero rows are right where there is no session."""
    frame = valid()
    del frame.sessions[:]
    put_array(frame, np.zeros((0, 4), np.float32), "float32")
    assert check(frame) == ()


def test_a_session_that_is_released_and_begins_anew_in_one_frame_opens_again() -> None:
    """So a session whose step failed is replayed."""
    frame = valid()
    frame.sessions[0].CopyFrom(pb.SessionSlice(session=6, position=0, count=1, keep=1, capacity=30))
    assert check(frame)[0].opens


def _set(**values: object) -> Callable[[pb.Frame], None]:
    def damage(frame: pb.Frame) -> None:
        for name, value in values.items():
            setattr(frame, name, value)

    return damage


def _piece(index: int, **values: int) -> Callable[[pb.Frame], None]:
    def damage(frame: pb.Frame) -> None:
        for name, value in values.items():
            setattr(frame.sessions[index], name, value)

    return damage


def _dims(*dims: int) -> Callable[[pb.Frame], None]:
    def damage(frame: pb.Frame) -> None:
        del frame.dims[:]
        frame.dims.extend(dims)

    return damage


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (_set(epoch=6), pb.WRONG_EPOCH, "epoch: 6, this stream serves epoch 7"),
        (_set(hop=3), pb.BAD_FRAME, "hop: 3, this stream is hop 2"),
        (_set(step=0), pb.BAD_FRAME, "step: 0; steps count from 1"),
        (_set(step=3), pb.BAD_FRAME, "step: 3, out of order: the newest is 3"),
        (_set(step=4 + MAX_STEP_GAP), pb.BAD_FRAME, "out of order"),
        (_set(dtype=pb.FLOAT16), pb.BAD_FRAME, "dtype: float16, the plan says float32"),
        (_set(dtype=99), pb.BAD_FRAME, "dtype: 99, the plan says float32"),
        (_dims(16), pb.BAD_FRAME, r"dims: \[16\], expected \[rows, 4\]"),
        (_dims(4, 2, 2), pb.BAD_FRAME, r"dims: \[4, 2, 2\]"),
        (_dims(2, 8), pb.BAD_FRAME, "dims: hidden size 8, the model has 4"),
        (_dims(MAX_FRAME_ROWS + 1, 4), pb.BAD_FRAME, "dims: 8193 rows, at most 8192"),
        (_dims(5, 4), pb.BAD_FRAME, "data: 64 bytes, dims and dtype say 80"),
        (_set(data=b""), pb.BAD_FRAME, "data: 0 bytes, dims and dtype say 64"),
        (lambda f: f.timings.pop(), pb.BAD_FRAME, r"timings: of hops \[0\]"),
        (lambda f: f.timings.add(hop=2), pb.BAD_FRAME, r"timings: of hops \[0, 1, 2\]"),
        (lambda f: f.released.append(6), pb.BAD_FRAME, "released: a session is named twice"),
        (lambda f: f.released.append(0), pb.BAD_FRAME, "released: 0 is not a session"),
        (_piece(0, session=0), pb.BAD_FRAME, r"sessions\[0\].session: 0 is not a session"),
        (_piece(1, session=5), pb.BAD_FRAME, r"sessions\[1\].session: session 0x5 stands twice"),
        (_piece(1, count=0), pb.BAD_FRAME, r"sessions\[1\].count: 0 rows"),
        (_piece(1, count=4), pb.BAD_FRAME, "dims: 4 rows, the sessions have 5"),
        (_piece(1, keep=4), pb.BAD_FRAME, r"sessions\[1\].keep: 4 of 3 rows"),
        (_piece(1, decode=True), pb.BAD_FRAME, r"sessions\[1\].decode: .* is 1 row, not 3"),
        (_piece(1, capacity=0), pb.BAD_FRAME, r"sessions\[1\].capacity: 0 tokens, the plan allows 1 to 40"),
        (_piece(1, capacity=41), pb.BAD_FRAME, r"sessions\[1\].capacity: 41 tokens"),
        (_piece(1, capacity=2), pb.BAD_FRAME, r"sessions\[1\].position: 0 \+ 3 rows is past the capacity 2"),
        (_piece(1, position=1), pb.BAD_FRAME, r"sessions\[1\].position: 1, but the session is not open"),
        (_piece(0, position=9), pb.BAD_FRAME, r"sessions\[0\].position: 9, the KV cache holds 10 tokens"),
        (_piece(0, position=2**32 - 1), pb.BAD_FRAME, r"sessions\[0\].position: 4294967295 \+ 1 rows"),
        (_piece(0, capacity=21), pb.BAD_FRAME, r"sessions\[0\].capacity: 21, it was opened with 20"),
        (
            _piece(0, session=6, position=3, capacity=30),
            pb.BAD_FRAME,
            r"position: 3, but the session is not open",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    damage: Callable[[pb.Frame], object], code: pb.ErrorCode.ValueType, message: str
) -> None:
    """The error carries the code, the field and both numbers."""
    frame = valid()
    damage(frame)
    with pytest.raises(FrameError, match=message) as caught:
        check(frame)
    assert caught.value.code == code
    assert re.fullmatch(FIELDS, caught.value.field)


def test_a_session_past_the_kv_budget_is_refused_with_the_numbers() -> None:
    """Reserved tokens of all sessions together count, those that the frame releases do not."""
    frame = valid()
    assert frame.released == [6]
    check(frame)
    del frame.released[:]
    frame.sessions[1].capacity = 40
    with pytest.raises(FrameError, match="the plan's KV budget is 80") as caught:
        check_frame(frame, Expectation(7, 2, "float32", 4, 80, 40), OPEN.get, 50, 3)
    assert (caught.value.code, caught.value.field) == (pb.KV_EXHAUSTED, "sessions[1].capacity")


def test_ten_thousand_damaged_frames_are_taken_right_or_refused_by_field() -> None:
    """Seed 20240: no exception but FrameError, no frame taken whose numbers do not hold together."""
    rng = Random(20240)
    traffic = Traffic(EXPECTED, rng)
    refused: dict[str, int] = {}
    undecodable = taken = 0

    def lookup(session: int) -> OpenSession | None:
        length = traffic.lengths.get(session)
        return None if length is None else OpenSession(length, traffic.capacities[session])

    def offer(frame: pb.Frame) -> None:
        released = sum(traffic.capacities.get(s, 0) for s in set(frame.released))
        reserved = sum(traffic.capacities.values()) - released
        slices = check_frame(frame, EXPECTED, lookup, reserved, traffic.step)
        assert array_of(frame).shape == (sum(s.rows.count for s in slices), 4)
        kept_rows(slices)
        assert all(s.rows.position + s.rows.count <= s.capacity <= 40 for s in slices)
        traffic.taken(frame)
        assert sum(traffic.capacities.values()) <= EXPECTED.kv_budget_tokens

    for number in range(10_000):
        good = traffic.frame()
        bad = decoded(damaged(good, rng))
        if bad is None:
            undecodable += 1
        else:
            try:
                offer(bad)
                taken += 1
            except FrameError as error:
                kind = re.sub(r"\d+", "", error.field) if re.fullmatch(FIELDS, error.field) else "?"
                refused[kind] = refused.get(kind, 0) + 1
        if number % 10 == 0:
            offer(traffic.frame())  # what is whole is still taken
    assert undecodable + taken + sum(refused.values()) == 10_000
    assert "?" not in refused, "an error that names no field"
    assert len(refused) == 14, f"a field was never damaged: {sorted(refused)}"
    assert min(undecodable, taken) > 100, "the damages are not mixed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_array_comes_back_as_it_was_put(dtype: str) -> None:
    """Bit for bit, in every dtype of the wire."""
    kinds = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    array = np.random.default_rng(5).standard_normal((3, 4)).astype(kinds[dtype])
    frame = pb.Frame()
    put_array(frame, array, dtype)
    back = array_of(pb.Frame.FromString(frame.SerializeToString()))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_kept_rows_are_the_trailing_ones_of_each_session() -> None:
    """3 rows of which 1 is kept, 2 of which both, 2 of which none."""
    slices = [
        CheckedSlice(SessionRows(1, 0, 3), keep=1, capacity=9, opens=True),
        CheckedSlice(SessionRows(2, 0, 2), keep=2, capacity=9, opens=True),
        CheckedSlice(SessionRows(3, 0, 2), keep=0, capacity=9, opens=True),
    ]
    rows = kept_rows(slices)
    assert rows is not None
    assert rows.tolist() == [2, 3, 4]
    assert kept_rows(slices[1:2]) is None
