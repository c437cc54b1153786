"""One range of one epoch on a host, and what a frame does to it. No socket.

The compute thread owns it. Only `forget` comes from another, also in the middle of a step: sessions that no frame
will name again are freed at once where the step has none of them, and end the step where it has nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from splitinfer.segment_runtime.engine.port import Array, LoadedRange, StepInterrupted
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import (
    CheckedSlice,
    Expectation,
    FrameError,
    OpenSession,
    array_of,
    check_envelope,
    check_frame,
    check_order,
    kept_rows,
    put_array,
)
from splitinfer.segment_runtime.work import StepWork, work_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step: from its arrival to the engine, in the engine, and around it."""

    queue: float
    decode: float
    compute: float
    encode: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a frame led to: a frame for the next hop, an error for the one before, or both.

    Both, when the rows failed but the frame released sessions: the hops behind must release them too.
    """

    frame: pb.Frame | None
    error: FrameError | None
    work: StepWork | None = None
    """None for a frame that only released."""
    times: StepTimes | None = None


@dataclass(slots=True)
class Hop:
    """One range of one epoch, with the sessions that run through it.

    Attributes:
        fenced: why no frame is taken any more, once a newer epoch serves or this one was released.
        taken: whether its one incoming stream has come.
        last_step: of the newest frame that was taken.
    """

    expected: Expectation
    loaded: LoadedRange
    next_address: str
    last: bool
    capacities: dict[int, int] = field(default_factory=dict)
    fenced: str | None = None
    taken: bool = False
    last_step: int = 0
    forgotten: set[int] = field(default_factory=set)
    """Sessions that the entry gave up, until the frame comes that releases them."""
    _step: tuple[frozenset[int], threading.Event] = field(
        default_factory=lambda: (frozenset(), threading.Event())
    )
    """Sessions of the step under way, and what ends it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards the sessions: which are open, forgotten, in the step."""

    def take(self, frame: pb.Frame, received: float, clock: Callable[[], float]) -> Outcome:
        """Check every field of a frame, then compute it; ``received`` is when it came, by ``clock``."""
        began = clock()
        try:
            with self._lock:
                slices = self._check(frame)
                interrupt = self._begin(slices)
        except FrameError as error:
            if error.code not in (pb.KV_EXHAUSTED, pb.ABANDONED):
                return Outcome(None, error)
            # Everything in it is right but the room: what it releases is to be released.
            self.last_step = frame.step
            return self._without_rows(frame, error)
        self.last_step = frame.step
        self.release(frame.released)
        hidden = array_of(frame)
        decoded = clock()
        try:
            result = self._run(slices, hidden, interrupt) if slices else hidden
        except StepInterrupted as error:
            self._end()
            return self._without_rows(frame, FrameError(pb.ABANDONED, "", str(error)))
        except Exception as error:
            self._end()
            log.exception("step %d of hop %d failed, epoch %d", frame.step, self.expected.hop, frame.epoch)
            # Some blocks may have appended to the KV and some not: these sessions begin anew.
            self.release(piece.rows.session for piece in slices)
            failure = FrameError(pb.COMPUTE_FAILED, "", f"{type(error).__name__}: {error}")
            return self._without_rows(frame, failure)
        self._end()
        computed = clock()
        if self.last and (rows := kept_rows(slices)) is not None:
            result = np.ascontiguousarray(result[rows])
        out = self._next(frame)
        out.sessions.extend(frame.sessions)
        put_array(out, result, self.expected.dtype)
        times = StepTimes(began - received, decoded - began, computed - decoded, clock() - computed)
        out.timings.append(_timing(self.expected.hop, times))
        blocks = self.loaded.stop - self.loaded.start
        return Outcome(out, None, work_of([piece.rows for piece in slices], blocks), times)

    def _check(self, frame: pb.Frame) -> tuple[CheckedSlice, ...]:
        if self.fenced is not None:
            raise FrameError(pb.WRONG_EPOCH, "epoch", f"{frame.epoch} is fenced off: {self.fenced}")
        named = [piece.session for piece in frame.sessions]
        if named and self.forgotten.issuperset(named):
            check_envelope(frame, self.expected)
            check_order(frame, self.last_step)
            raise FrameError(pb.ABANDONED, "sessions", "the entry gave up every session of the step")
        reserved = sum(self.capacities.values())
        reserved -= sum(self.capacities.get(session, 0) for session in set(frame.released))
        return check_frame(frame, self.expected, self._session, reserved, self.last_step)

    def _session(self, session: int) -> OpenSession | None:
        capacity = self.capacities.get(session)
        return None if capacity is None else OpenSession(self.loaded.length(session), capacity)

    def _begin(self, slices: tuple[CheckedSlice, ...]) -> threading.Event:
        interrupt = threading.Event()
        self._step = (frozenset(piece.rows.session for piece in slices), interrupt)
        return interrupt

    def _end(self) -> None:
        """No step is under way; what was forgotten in it is freed."""
        with self._lock:
            self._step = (frozenset(), threading.Event())
            self._free(self.forgotten & self.capacities.keys())

    def forget(self, sessions: Iterable[int]) -> None:
        """The entry gave these up: free them without waiting for the frame that releases them. From any thread."""
        with self._lock:
            self.forgotten.update(sessions)
            running, interrupt = self._step
            if running and running <= self.forgotten:
                interrupt.set()
            self._free((self.forgotten & self.capacities.keys()) - running)

    def _run(self, slices: tuple[CheckedSlice, ...], hidden: Array, interrupt: threading.Event) -> Array:
        """Open what begins, then one step of the engine: ``[rows, hidden]`` in and out."""
        for piece in slices:
            if piece.opens:
                self.loaded.open(piece.rows.session, piece.capacity)
                with self._lock:
                    self.capacities[piece.rows.session] = piece.capacity
        return self.loaded.step(hidden, [piece.rows for piece in slices], interrupt)

    def _next(self, frame: pb.Frame) -> pb.Frame:
        out = pb.Frame(epoch=frame.epoch, step=frame.step, hop=self.expected.hop + 1)
        out.released.extend(frame.released)
        out.timings.extend(frame.timings)
        return out

    def _without_rows(self, frame: pb.Frame, error: FrameError) -> Outcome:
        """The rows end here with an error; what the frame releases goes on."""
        if not frame.released:
            return Outcome(None, error)
        self.release(frame.released)
        out = self._next(frame)
        out.timings.append(_timing(self.expected.hop, StepTimes(0.0, 0.0, 0.0, 0.0)))
        put_array(out, array_of(frame)[:0], self.expected.dtype)
        return Outcome(out, error)

    def release(self, sessions: Iterable[int]) -> None:
        """Free the KV of sessions; those that are not open are passed over (a release may come twice)."""
        with self._lock:
            gone = set(sessions)
            self.forgotten -= gone
            self._free(gone)

    def _free(self, sessions: Iterable[int]) -> None:
        for session in sessions:
            if self.capacities.pop(session, None) is not None:
                self.loaded.close(session)

    def close(self) -> None:
        """Free every session."""
        self.release(list(self.capacities))


def _timing(hop: int, times: StepTimes) -> pb.HopTiming:
    def microseconds(seconds: float) -> int:
        return max(0, int(seconds * 1e6))

    return pb.HopTiming(
        hop=hop,
        queue_us=microseconds(times.queue),
        decode_us=microseconds(times.decode),
        compute_us=microseconds(times.compute),
        encode_us=microseconds(times.encode),
    )
