"""What a plan is expected to do, as it travels with the plan: validated numbers beside what they were computed for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from splitinfer.optimizer.values import Positive, Value

Seconds = Annotated[float, Field(gt=0)]


class Traffic(Value):
    """The load that a forecast is for."""

    sessions: Annotated[float, Field(gt=0)]
    """Sessions in one decode step, on average."""
    in_flight: Positive = 1
    """Decode steps on their way at a time."""
    context_tokens: Annotated[float, Field(gt=0)]
    """Of a session that decodes, on average."""
    prompt_tokens: Positive
    """Of the typical prompt."""


class Forecast(Value):
    """End to end and per segment, for one load."""

    traffic: Traffic
    tpot_seconds: Seconds
    ttft_seconds: Seconds
    tokens_per_second: Annotated[float, Field(gt=0)]
    """Of all sessions together, while they decode."""
    segment_seconds: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    """Of one decode step, per segment in the order of the chain, without links."""
