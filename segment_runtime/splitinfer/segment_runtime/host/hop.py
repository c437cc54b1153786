"""One range of one epoch on a host, and what a frame does to it. No socket; the compute thread owns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import structlog

from splitinfer.segment_runtime.engine.port import Array, LoadedRange
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import (
    CheckedSlice,
    Expectation,
    FrameError,
    OpenSession,
    array_of,
    check_frame,
    kept_rows,
    put_array,
)

log = structlog.get_logger()


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
    rows: int = 0
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

    def take(self, frame: pb.Frame, received: float, clock: Callable[[], float]) -> Outcome:
        """Check every field of a frame, then compute it; ``received`` is when it came, by ``clock``."""
        began = clock()
        try:
            slices = self._check(frame)
        except FrameError as error:
            if error.code != pb.KV_EXHAUSTED:
                return Outcome(None, error)
            # Everything in it is right but the room: what it releases is to be released.
            self.last_step = frame.step
            return self._without_rows(frame, error)
        self.last_step = frame.step
        self.release(frame.released)
        hidden = array_of(frame)
        decoded = clock()
        try:
            result = self._run(slices, hidden) if slices else hidden
        except Exception as error:
            log.exception("step failed", epoch=frame.epoch, hop=self.expected.hop, step=frame.step)
            # Some blocks may have appended to the KV and some not: these sessions begin anew.
            self.release(piece.rows.session for piece in slices)
            failure = FrameError(pb.COMPUTE_FAILED, "", f"{type(error).__name__}: {error}")
            return self._without_rows(frame, failure)
        computed = clock()
        if self.last and (rows := kept_rows(slices)) is not None:
            result = np.ascontiguousarray(result[rows])
        out = self._next(frame)
        out.sessions.extend(frame.sessions)
        put_array(out, result, self.expected.dtype)
        times = StepTimes(began - received, decoded - began, computed - decoded, clock() - computed)
        out.timings.append(_timing(self.expected.hop, times))
        return Outcome(out, None, frame.dims[0], times)

    def _check(self, frame: pb.Frame) -> tuple[CheckedSlice, ...]:
        if self.fenced is not None:
            raise FrameError(pb.WRONG_EPOCH, "epoch", f"{frame.epoch} is fenced off: {self.fenced}")
        reserved = sum(self.capacities.values())
        reserved -= sum(self.capacities.get(session, 0) for session in set(frame.released))
        return check_frame(frame, self.expected, self._session, reserved, self.last_step)

    def _session(self, session: int) -> OpenSession | None:
        capacity = self.capacities.get(session)
        return None if capacity is None else OpenSession(self.loaded.length(session), capacity)

    def _run(self, slices: tuple[CheckedSlice, ...], hidden: Array) -> Array:
        """Open what begins, then one step of the engine: ``[rows, hidden]`` in and out."""
        for piece in slices:
            if piece.opens:
                self.loaded.open(piece.rows.session, piece.capacity)
                self.capacities[piece.rows.session] = piece.capacity
        return self.loaded.step(hidden, [piece.rows for piece in slices])

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
