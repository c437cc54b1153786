"""Frames as values: what a receiver expects, and the check of every field before a tensor is touched.

Pure: no socket, no engine. A host and the entry use the same check.

Errors
------
FrameError                a frame that does not match the plan; carries the error code and the field's name
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.dtypes import DTypeName
from splitinfer.segment_runtime.engine.port import SessionRows
from splitinfer.segment_runtime.proto import runtime_pb2 as pb

DTYPES: dict[str, tuple[pb.DType.ValueType, np.dtype[Any]]] = {
    "float32": (pb.FLOAT32, np.dtype(np.float32)),
    "bfloat16": (pb.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
    "float16": (pb.FLOAT16, np.dtype(np.float16)),
}
WEIGHT_DTYPES: dict[DTypeName, pb.DType.ValueType] = {
    "float32": pb.FLOAT32,
    "bfloat16": pb.BFLOAT16,
    "float16": pb.FLOAT16,
    "int8": pb.INT8,
    "int4": pb.INT4,
}
"""Of plans: frames carry the activations that go with them (`activation_of`)."""
WEIGHT_DTYPE_NAMES: dict[int, DTypeName] = {int(code): name for name, code in WEIGHT_DTYPES.items()}
DTYPE_NAMES: dict[int, str] = {int(code): name for name, (code, _) in DTYPES.items()}

MAX_FRAME_ROWS = 8192
"""More rows than any scheduler sends; bounds what a receiver allocates for a frame."""

MAX_STEP_GAP = 1 << 20
"""Steps of an epoch grow, with gaps where a step failed on the way; a jump past this is a damaged number, and to
believe it would make every later frame late."""


class FrameError(Exception):
    """A frame that was refused before it was computed.

    Attributes:
        code: an `ErrorCode` of the protocol.
        field: name of the offending field, e.g. ``sessions[2].position``.
    """

    def __init__(self, code: pb.ErrorCode.ValueType, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.code = code
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the plan says about the frames of one hop; ``dtype`` is that of the activations."""

    epoch: int
    hop: int
    dtype: str
    hidden_size: int
    kv_budget_tokens: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class OpenSession:
    """What a receiver knows of a session before the frame: KV tokens held and reserved."""

    length: int
    capacity: int


@dataclass(frozen=True, slots=True)
class CheckedSlice:
    """One session's rows in a frame whose fields have all been checked."""

    rows: SessionRows
    keep: int
    capacity: int
    opens: bool


def _refuse(field: str, message: str, code: pb.ErrorCode.ValueType = pb.BAD_FRAME) -> FrameError:
    return FrameError(code, field, message)


def check_envelope(frame: pb.Frame, expected: Expectation) -> None:
    """Epoch, hop, dtype, dims, byte count, and one timing of each hop behind. Raises FrameError."""
    if frame.epoch != expected.epoch:
        raise _refuse("epoch", f"{frame.epoch}, this stream serves epoch {expected.epoch}", pb.WRONG_EPOCH)
    if frame.hop != expected.hop:
        raise _refuse("hop", f"{frame.hop}, this stream is hop {expected.hop}")
    if frame.step == 0:
        raise _refuse("step", "0; steps count from 1")
    code, dtype = DTYPES[expected.dtype]
    if frame.dtype != code:
        got = DTYPE_NAMES.get(frame.dtype, str(frame.dtype))
        raise _refuse("dtype", f"{got}, the plan says {expected.dtype}")
    if len(frame.dims) != 2:
        raise _refuse("dims", f"{list(frame.dims)}, expected [rows, {expected.hidden_size}]")
    rows, hidden = frame.dims
    if hidden != expected.hidden_size:
        raise _refuse("dims", f"hidden size {hidden}, the model has {expected.hidden_size}")
    if rows > MAX_FRAME_ROWS:
        raise _refuse("dims", f"{rows} rows, at most {MAX_FRAME_ROWS}")
    size = rows * hidden * dtype.itemsize
    if len(frame.data) != size:
        raise _refuse("data", f"{len(frame.data)} bytes, dims and dtype say {size}")
    behind = [timing.hop for timing in frame.timings[: expected.hop + 1]]
    if behind != list(range(expected.hop)):
        raise _refuse("timings", f"of hops {behind}, expected one of each of the {expected.hop} hops behind")


def check_order(frame: pb.Frame, last_step: int) -> None:
    """The step is newer than the newest that was taken. Raises FrameError."""
    if not last_step < frame.step <= last_step + MAX_STEP_GAP:
        raise _refuse("step", f"{frame.step}, out of order: the newest is {last_step}")


def check_frame(
    frame: pb.Frame,
    expected: Expectation,
    session: Callable[[int], OpenSession | None],
    reserved_tokens: int,
    last_step: int = 0,
) -> tuple[CheckedSlice, ...]:
    """Check every field of a frame against the plan and the sessions that are open.

    Args:
        frame: as received.
        expected: what the plan says.
        session: looks up an open session; None where it is not open. Sessions that the frame releases
            count as closed.
        reserved_tokens: KV tokens reserved now, without the sessions that the frame releases.
        last_step: of the newest frame that was taken.

    Returns:
        One checked slice per session, in the frame's order.

    Raises:
        FrameError: the first field that is wrong; nothing was changed.
    """
    check_envelope(frame, expected)
    check_order(frame, last_step)
    released = set(frame.released)
    if 0 in released:
        raise _refuse("released", "0 is not a session")
    if len(released) != len(frame.released):
        raise _refuse("released", "a session is named twice")
    checked: list[CheckedSlice] = []
    seen: set[int] = set()
    total = 0
    for index, piece in enumerate(frame.sessions):
        where = f"sessions[{index}]"
        if piece.session == 0:
            raise _refuse(f"{where}.session", "0 is not a session")
        if piece.session in seen:
            raise _refuse(f"{where}.session", f"session {piece.session:#x} stands twice in the frame")
        seen.add(piece.session)
        if piece.count == 0:
            raise _refuse(f"{where}.count", "0 rows")
        if piece.keep > piece.count:
            raise _refuse(f"{where}.keep", f"{piece.keep} of {piece.count} rows")
        if not 0 < piece.capacity <= expected.max_context_tokens:
            raise _refuse(
                f"{where}.capacity",
                f"{piece.capacity} tokens, the plan allows 1 to {expected.max_context_tokens}",
            )
        if piece.position + piece.count > piece.capacity:
            raise _refuse(
                f"{where}.position",
                f"{piece.position} + {piece.count} rows is past the capacity {piece.capacity}",
            )
        if piece.decode and piece.count != 1:
            raise _refuse(f"{where}.decode", f"a generated token by itself is 1 row, not {piece.count}")
        known = None if piece.session in released else session(piece.session)
        if known is None:
            if piece.position != 0:
                raise _refuse(
                    f"{where}.position", f"{piece.position}, but the session is not open; it begins at 0"
                )
            reserved_tokens += piece.capacity
            if reserved_tokens > expected.kv_budget_tokens:
                raise _refuse(
                    f"{where}.capacity",
                    f"{piece.capacity} tokens more make {reserved_tokens}, the plan's KV budget is "
                    f"{expected.kv_budget_tokens}",
                    pb.KV_EXHAUSTED,
                )
        else:
            if piece.position != known.length:
                raise _refuse(
                    f"{where}.position", f"{piece.position}, the KV cache holds {known.length} tokens"
                )
            if piece.capacity != known.capacity:
                raise _refuse(f"{where}.capacity", f"{piece.capacity}, it was opened with {known.capacity}")
        total += piece.count
        checked.append(
            CheckedSlice(
                rows=SessionRows(piece.session, piece.position, piece.count, piece.decode),
                keep=piece.keep,
                capacity=piece.capacity,
                opens=known is None,
            )
        )
    if total != frame.dims[0]:
        raise _refuse("dims", f"{frame.dims[0]} rows, the sessions have {total}")
    return tuple(checked)


def array_of(frame: pb.Frame) -> NDArray[Any]:
    """``[rows, hidden]`` view on the frame's bytes. Check the envelope first."""
    _, dtype = DTYPES[DTYPE_NAMES[frame.dtype]]
    # The wire is little-endian, as every machine this runs on; a big-endian one would have to swap here.
    return np.frombuffer(frame.data, dtype=dtype).reshape(tuple(frame.dims))


def put_array(frame: pb.Frame, array: NDArray[Any], dtype: str) -> None:
    """Write ``[rows, hidden]`` into a frame."""
    code, expected = DTYPES[dtype]
    assert array.ndim == 2, array.shape
    assert array.dtype == expected, (array.dtype, dtype)
    frame.dtype = code
    del frame.dims[:]
    frame.dims.extend(array.shape)
    frame.data = array.tobytes()


def kept_rows(slices: Sequence[CheckedSlice]) -> NDArray[np.intp] | None:
    """Row indices that the entry wants back, or None when it wants all of them."""
    if all(piece.keep == piece.rows.count for piece in slices):
        return None
    wanted: list[int] = []
    start = 0
    for piece in slices:
        stop = start + piece.rows.count
        wanted.extend(range(stop - piece.keep, stop))
        start = stop
    return np.asarray(wanted, dtype=np.intp)
