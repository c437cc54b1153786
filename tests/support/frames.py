"""Valid traffic for one hop, and ways to damage it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from google.protobuf.message import DecodeError

from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import Expectation, put_array

FIELDS = r"epoch|hop|step|dtype|dims|data|released|timings|sessions\[\d+\]\.(session|position|count|keep|decode|capacity)"
"""What an error about a frame may name."""

NUMBERS = (0, 1, 2, 3, 7, 63, 64, 65, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
LARGE = (*NUMBERS, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass
class Traffic:
    """Frames that a host must take, following what it has taken."""

    expected: Expectation
    rng: Random
    lengths: dict[int, int] = field(default_factory=dict)
    capacities: dict[int, int] = field(default_factory=dict)
    step: int = 0
    next_session: int = 1

    def frame(self) -> pb.Frame:
        """A random valid frame; `taken` notes that it was."""
        frame = pb.Frame(epoch=self.expected.epoch, hop=self.expected.hop, step=self.step + 1)
        room = self.expected.kv_budget_tokens - sum(self.capacities.values())
        live = list(self.lengths)
        while live and (len(live) > 5 or room < self.expected.max_context_tokens or self.rng.random() < 0.1):
            gone = live.pop(0)
            frame.released.append(gone)
            room += self.capacities[gone]
        for session in self.rng.sample(live, min(len(live), 2)):
            left = self.capacities[session] - self.lengths[session]
            if left:
                count = self.rng.randint(1, min(left, 4))
                self._add(frame, session, self.lengths[session], count, self.capacities[session])
        if not frame.sessions:
            capacity = self.rng.randint(1, self.expected.max_context_tokens)
            self._add(frame, self.next_session, 0, self.rng.randint(1, min(capacity, 5)), capacity)
            self.next_session += 1
        rows = sum(piece.count for piece in frame.sessions)
        draw = np.random.default_rng(self.rng.getrandbits(32))
        shape = (rows, self.expected.hidden_size)
        put_array(frame, draw.standard_normal(shape, dtype=np.float32), self.expected.dtype)
        frame.timings.extend(pb.HopTiming(hop=hop, compute_us=5) for hop in range(self.expected.hop))
        return frame

    def _add(self, frame: pb.Frame, session: int, position: int, count: int, capacity: int) -> None:
        keep = self.rng.randint(0, count)
        decode = count == 1 and self.rng.random() < 0.5
        frame.sessions.add(
            session=session, position=position, count=count, keep=keep, capacity=capacity, decode=decode
        )

    def taken(self, frame: pb.Frame) -> None:
        """The host took a frame, damaged or not."""
        self.step = frame.step
        for session in frame.released:
            self.lengths.pop(session, None)
            self.capacities.pop(session, None)
        for piece in frame.sessions:
            self.lengths[piece.session] = piece.position + piece.count
            self.capacities[piece.session] = piece.capacity
            self.next_session = max(self.next_session, min(piece.session, 2**60) + 1)

    def release_all(self) -> pb.Frame:
        """A frame that frees every session."""
        frame = pb.Frame(epoch=self.expected.epoch, hop=self.expected.hop, step=self.step + 1)
        frame.released.extend(self.lengths)
        put_array(frame, np.zeros((0, self.expected.hidden_size), np.float32), self.expected.dtype)
        frame.timings.extend(pb.HopTiming(hop=hop) for hop in range(self.expected.hop))
        return frame


def damaged(frame: pb.Frame, rng: Random) -> bytes:
    """The bytes of a frame with one to three damages, of its fields or of its bytes."""
    frame = pb.Frame.FromString(frame.SerializeToString())
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 3)):
            rng.choice(_DAMAGES)(frame, rng)
        return bytes(frame.SerializeToString())
    data = bytearray(frame.SerializeToString())
    # The data field is nearly all of a frame; what is around it is more interesting.
    reach = min(len(data), 96) if rng.random() < 0.8 else len(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(reach)
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
        reach = min(reach, len(data))
        if not reach:
            break
    return bytes(data)


def decoded(data: bytes) -> pb.Frame | None:
    """The frame, or None where the bytes are none."""
    try:
        return pb.Frame.FromString(data)
    except DecodeError:
        return None


def _scalar(name: str) -> Callable[[pb.Frame, Random], None]:
    def damage(frame: pb.Frame, rng: Random) -> None:
        setattr(frame, name, rng.choice(NUMBERS if name == "hop" else LARGE))

    return damage


def _of_session(name: str) -> Callable[[pb.Frame, Random], None]:
    def damage(frame: pb.Frame, rng: Random) -> None:
        if frame.sessions:
            piece = rng.choice(list(frame.sessions))
            setattr(piece, name, rng.choice(LARGE if name == "session" else NUMBERS))

    return damage


def _decode(frame: pb.Frame, rng: Random) -> None:
    if frame.sessions:
        rng.choice(list(frame.sessions)).decode = True


def _dtype(frame: pb.Frame, rng: Random) -> None:
    frame.dtype = rng.choice((0, 2, 3, 4, 77))  # type: ignore[assignment]  # numbers that are no dtype


def _dims(frame: pb.Frame, rng: Random) -> None:
    dims = list(frame.dims)
    match rng.randrange(4):
        case 0:
            dims = dims[:1]
        case 1:
            dims.append(1)
        case 2:
            dims.reverse()
        case 3 if dims:
            dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)
    del frame.dims[:]
    frame.dims.extend(dims)


def _data(frame: pb.Frame, rng: Random) -> None:
    frame.data = rng.choice((b"", frame.data[:-1], frame.data + b"\0", frame.data[: len(frame.data) // 2]))


def _released(frame: pb.Frame, rng: Random) -> None:
    frame.released.extend([rng.choice(LARGE)] * rng.randint(1, 2))


def _double(frame: pb.Frame, rng: Random) -> None:
    if frame.sessions:
        frame.sessions.append(rng.choice(list(frame.sessions)))


def _lose(frame: pb.Frame, rng: Random) -> None:
    if frame.sessions:
        del frame.sessions[rng.randrange(len(frame.sessions))]


def _timings(frame: pb.Frame, rng: Random) -> None:
    frame.timings.add(hop=rng.choice(NUMBERS))


_DAMAGES: tuple[Callable[[pb.Frame, Random], None], ...] = (
    _scalar("epoch"),
    _scalar("hop"),
    _scalar("step"),
    *(_of_session(name) for name in ("session", "position", "count", "keep", "capacity")),
    _decode,
    _dtype,
    _dims,
    _data,
    _released,
    _double,
    _lose,
    _timings,
)
