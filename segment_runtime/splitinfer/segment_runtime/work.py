"""What one frame is to a range, in the quantities that a step's time is linear in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from splitinfer.segment_runtime.engine.port import SessionRows

Phase = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = ("decode", "prefill")


@dataclass(frozen=True, slots=True)
class StepWork:
    """One frame in one range.

    Attributes:
        phase: ``decode`` when every session has one row: the time is that of reading weights and KV, whatever the row
            is. One chunk of a prompt beside others' tokens makes it ``prefill``: the arithmetic of the chunk is its time.
        blocks: that it ran through.
        rows: of all sessions.
        context_tokens: tokens of KV cache that the rows look at, per session once, those of the frame included.
    """

    phase: Phase
    blocks: int
    rows: int
    context_tokens: int


def phase_of(counts: Sequence[int]) -> Phase:
    """The phase of a step whose sessions have so many rows each."""
    return "decode" if all(count == 1 for count in counts) else "prefill"


def work_of(batch: Sequence[SessionRows], blocks: int) -> StepWork | None:
    """The work of a frame's sessions in a range of so many blocks; None for a frame without rows."""
    if not batch:
        return None
    return StepWork(
        phase=phase_of([rows.count for rows in batch]),
        blocks=blocks,
        rows=sum(rows.count for rows in batch),
        context_tokens=sum(rows.position + rows.count for rows in batch),
    )
