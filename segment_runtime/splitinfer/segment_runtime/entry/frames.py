"""Micro-batches as frames and back: pure, but for the embedding table that is read.

Errors
------
TokensRefused             a session whose tokens the model has no embedding for; carries the session
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.optimizer.plan import Plan
from splitinfer.segment_runtime.entry.embed import Embedder
from splitinfer.segment_runtime.entry.sessions import MicroBatch
from splitinfer.segment_runtime.proto import runtime_pb2 as pb
from splitinfer.segment_runtime.wire import Expectation, FrameError, check_envelope, put_array


class TokensRefused(Exception):
    """A session whose tokens the model has no embedding for."""

    def __init__(self, session: int, message: str) -> None:
        super().__init__(message)
        self.session = session


def frame_of(batch: MicroBatch, plan: Plan, embedder: Embedder) -> pb.Frame:
    """The frame of a micro-batch. Raises TokensRefused."""
    frame = pb.Frame(epoch=plan.epoch, step=batch.step, hop=0, released=batch.released)
    rows: list[NDArray[Any]] = []
    for piece in batch.slices:
        try:
            rows.append(embedder.embed(piece.tokens, piece.position))
        except ValueError as error:
            raise TokensRefused(piece.session, str(error)) from error
        frame.sessions.add(
            session=piece.session,
            position=piece.position,
            count=piece.count,
            keep=piece.keep,
            capacity=piece.capacity,
            decode=piece.decode,
        )
    put_array(frame, np.concatenate(rows) if len(rows) > 1 else rows[0], plan.activation)
    return frame


def release_frame(step: int, released: Sequence[int], plan: Plan, embedder: Embedder) -> pb.Frame:
    """A frame that only frees KV: no rows."""
    frame = pb.Frame(epoch=plan.epoch, step=step, hop=0, released=released)
    put_array(frame, embedder.embed((), 0), plan.activation)
    return frame


def check_return(frame: pb.Frame, batch: MicroBatch, plan: Plan, hidden_size: int) -> None:
    """Hold what the last hop sent against what was sent to the first. Raises FrameError."""
    expected = Expectation(
        epoch=plan.epoch,
        hop=len(plan.segments),
        dtype=plan.activation,
        hidden_size=hidden_size,
        kv_budget_tokens=plan.kv_budget_tokens,
        max_context_tokens=plan.max_context_tokens,
    )
    check_envelope(frame, expected)
    sent = [(p.session, p.position, p.count, p.keep, p.decode) for p in batch.slices]
    came = [(p.session, p.position, p.count, p.keep, p.decode) for p in frame.sessions]
    if sent != came:
        raise FrameError(
            pb.BAD_FRAME, "sessions", f"step {frame.step} came back with others than it was sent with"
        )
    kept = sum(piece.keep for piece in batch.slices)
    if frame.dims[0] != kept:
        raise FrameError(pb.BAD_FRAME, "dims", f"{frame.dims[0]} rows, step {frame.step} keeps {kept}")
