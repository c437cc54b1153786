"""Sums over the steps that a host computed, as it exports them (`splitinfer.profiler.series.HOST_SERIES`). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Of one phase, since the host started; the difference of two is what happened between them.

    Attributes:
        steps: frames computed in one range.
        seconds: that the engine computed.
        blocks: run, summed over frames.
        block_rows: blocks run times rows of the frame.
        block_context_tokens: blocks run times tokens of KV cache that the frame's rows look at, per session once.
    """

    steps: float
    seconds: float
    blocks: float
    block_rows: float
    block_context_tokens: float

    def since(self, before: StepTotals) -> StepTotals | None:
        """What happened since; None where a counter went back, because the host was started anew."""
        parts = [
            getattr(self, name) - getattr(before, name)
            for name in ("steps", "seconds", "blocks", "block_rows", "block_context_tokens")
        ]
        return None if any(part < 0 for part in parts) else StepTotals(*parts)

    def plus(self, other: StepTotals) -> StepTotals:
        """Of two hosts together."""
        return StepTotals(
            self.steps + other.steps,
            self.seconds + other.seconds,
            self.blocks + other.blocks,
            self.block_rows + other.block_rows,
            self.block_context_tokens + other.block_context_tokens,
        )
