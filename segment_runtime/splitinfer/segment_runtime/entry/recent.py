"""What was served lately: the latest steps and tokens of the epoch that serves, summed up when somebody asks. Pure.

The figures say what traffic they are of, so that a prediction can be made for the same traffic and held against them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Any

from splitinfer.segment_runtime.work import Phase

WINDOW_SECONDS = 60.0
"""What is older is not of now."""
KEPT = 512
"""Samples of a kind; at a hundred steps a second the window is shorter."""


@dataclass(frozen=True, slots=True)
class StepSample:
    """One step that came back.

    Attributes:
        at: when, on the entry's clock.
        phase: by its rows, as hosts tell it.
        sessions: with rows in it.
        rows: of all of them.
        context_tokens: of all sessions, the rows included.
        in_flight: steps on their way when it came back, itself included.
        ring: seconds from leaving the entry to coming back.
        hops: seconds that each hop worked on it: from frame to tensor, computing, and back to a frame.
    """

    at: float
    phase: Phase
    sessions: int
    rows: int
    context_tokens: int
    in_flight: int
    ring: float
    hops: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenSample:
    """One token of one session: from the token before (or, of the first, from the request) to itself.

    ``prompt_tokens`` is set for the first token.
    """

    began: float
    at: float
    prompt_tokens: int | None = None


class Recent:
    """Samples of the last time."""

    def __init__(self) -> None:
        self._steps: deque[StepSample] = deque(maxlen=KEPT)
        self._tokens: deque[TokenSample] = deque(maxlen=KEPT)
        self._firsts: deque[TokenSample] = deque(maxlen=KEPT)

    def step(self, sample: StepSample) -> None:
        """A step came back."""
        self._steps.append(sample)

    def token(self, sample: TokenSample) -> None:
        """A token came."""
        (self._tokens if sample.prompt_tokens is None else self._firsts).append(sample)

    def clear(self) -> None:
        """Another plan serves: what was before says nothing of it."""
        for samples in (self._steps, self._tokens, self._firsts):
            samples.clear()

    def report(self, now: float) -> dict[str, Any]:
        """As JSON. A part is None where there was no traffic of its kind in the window."""
        since = now - WINDOW_SECONDS
        steps = [step for step in self._steps if step.at >= since]
        tokens = [token for token in self._tokens if token.at >= since]
        firsts = [token for token in self._firsts if token.at >= since]
        return {
            "window_seconds": WINDOW_SECONDS,
            "decode": _steps([step for step in steps if step.phase == "decode"]),
            "prefill": _steps([step for step in steps if step.phase == "prefill"]),
            "tokens": _tokens(tokens),
            "prompts": _prompts(firsts),
        }


def _steps(steps: Sequence[StepSample]) -> dict[str, Any] | None:
    if not steps:
        return None
    sessions = sum(step.sessions for step in steps)
    return {
        "steps": len(steps),
        "sessions_mean": sessions / len(steps),
        "rows_mean": fmean(step.rows for step in steps),
        "context_tokens_mean": sum(step.context_tokens for step in steps) / sessions,
        "in_flight_mean": fmean(step.in_flight for step in steps),
        "ring_p50_seconds": median(step.ring for step in steps),
        "hop_p50_seconds": [median(each) for each in zip(*(step.hops for step in steps), strict=True)],
    }


def _tokens(tokens: Sequence[TokenSample]) -> dict[str, Any] | None:
    if not tokens:
        return None
    busy = covered((token.began, token.at) for token in tokens)
    return {
        "count": len(tokens),
        **_spread("tpot", [token.at - token.began for token in tokens]),
        "per_second": len(tokens) / busy if busy > 0 else None,
    }


def _prompts(firsts: Sequence[TokenSample]) -> dict[str, Any] | None:
    if not firsts:
        return None
    return {
        "count": len(firsts),
        **_spread("ttft", [token.at - token.began for token in firsts]),
        "tokens_p50": int(median(token.prompt_tokens or 0 for token in firsts)),
    }


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    p95 = quantiles(seconds, n=20, method="inclusive")[18] if len(seconds) > 1 else seconds[0]
    return {f"{name}_p50_seconds": median(seconds), f"{name}_p95_seconds": p95}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans: the time in which at least one of them ran."""
    total, end = 0.0, float("-inf")
    for began, at in sorted(spans):
        total += max(0.0, at - max(began, end))
        end = max(end, at)
    return total
