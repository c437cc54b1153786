"""What the operator of an entry may set."""

from __future__ import annotations

from dataclasses import dataclass

from splitinfer.segment_runtime.entry.sessions import Limits
from splitinfer.segment_runtime.wire import MAX_FRAME_ROWS


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator of an entry may set.

    Attributes:
        scheduler: limits; the budget and the number of micro-batches come from the plan.
        micro_batches: micro-batches in flight; 0: one per segment.
        step_seconds: steps under way and no answer for this long breaks the pipeline.

    Raises:
        ValueError: a step may grow larger than a frame is allowed to be.
    """

    scheduler: Limits
    micro_batches: int = 0
    step_seconds: float = 60.0

    def __post_init__(self) -> None:
        limits = self.scheduler
        rows = limits.max_sessions + max(limits.prefill_chunk, limits.mixed_prefill_chunk)
        if rows > MAX_FRAME_ROWS:
            raise ValueError(
                f"--max-sessions and --prefill-chunk: together {rows} rows in a step, a frame takes {MAX_FRAME_ROWS}"
            )
