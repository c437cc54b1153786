"""What was served lately, from samples by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from splitinfer.segment_runtime.entry.recent import (
    KEPT,
    WINDOW_SECONDS,
    Recent,
    StepSample,
    TokenSample,
    covered,
)
from splitinfer.segment_runtime.work import Phase


def step(
    at: float, phase: Phase = "decode", sessions: int = 1, context: int = 100, hop: float = 0.01
) -> StepSample:
    """Of two hops, the second twice as slow."""
    return StepSample(at, phase, sessions, sessions, context, 1, 3 * hop, (hop, 2 * hop))


def test_without_traffic_every_part_is_none() -> None:
    """Nothing is not zero."""
    assert Recent().report(5.0) == {
        "window_seconds": WINDOW_SECONDS,
        "decode": None,
        "prefill": None,
        "tokens": None,
        "prompts": None,
    }


def test_steps_are_summed_up_by_phase() -> None:
    """The context is per session, not per step: two sessions of 100 and one of 300 look at 500 / 3 each."""
    recent = Recent()
    recent.step(step(1.0, sessions=2, context=200, hop=0.01))
    recent.step(step(2.0, sessions=1, context=300, hop=0.03))
    recent.step(step(3.0, "prefill", hop=0.5))
    found = recent.report(4.0)
    assert found["decode"] == {
        "steps": 2,
        "sessions_mean": 1.5,
        "rows_mean": 1.5,
        "context_tokens_mean": 500 / 3,
        "in_flight_mean": 1.0,
        "ring_p50_seconds": 0.06,
        "hop_p50_seconds": [0.02, 0.04],
    }
    assert found["prefill"]["hop_p50_seconds"] == [0.5, 1.0]


def test_tokens_and_prompts_are_told_apart() -> None:
    """A first token is no interval between two, and brings the length of its prompt."""
    recent = Recent()
    recent.token(TokenSample(0.0, 2.0, prompt_tokens=192))
    recent.token(TokenSample(0.0, 4.0, prompt_tokens=100))
    for at in (2.0, 3.0):
        recent.token(TokenSample(at, at + 1.0))
    found = recent.report(4.0)
    assert found["prompts"] == {
        "count": 2,
        "ttft_p50_seconds": 3.0,
        "ttft_p95_seconds": 3.9,
        "tokens_p50": 146,
    }
    assert found["tokens"]["count"] == 2
    assert found["tokens"]["tpot_p50_seconds"] == 1.0
    assert found["tokens"]["per_second"] == 1.0


def test_throughput_counts_the_time_in_which_somebody_decoded_and_no_pause() -> None:
    """Two sessions side by side give two tokens a second; an hour without any is no slow token."""
    recent = Recent()
    for began in (0.0, 30.0):
        for _ in range(2):
            recent.token(TokenSample(began, began + 1.0))
    assert recent.report(31.0)["tokens"]["per_second"] == 2.0


def test_what_is_older_than_the_window_or_of_another_plan_is_forgotten() -> None:
    """By time, by number, and all of it when another plan serves."""
    recent = Recent()
    recent.step(step(0.0))
    assert recent.report(WINDOW_SECONDS)["decode"]["steps"] == 1
    assert recent.report(WINDOW_SECONDS + 0.1)["decode"] is None
    for _ in range(KEPT + 7):
        recent.step(step(100.0))
    assert recent.report(100.0)["decode"]["steps"] == KEPT
    recent.clear()
    assert recent.report(100.0)["decode"] is None


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10)).map(lambda s: (s[0], s[0] + s[1])))


@given(spans)
def test_covered_is_the_length_of_the_union(found: list[tuple[int, int]]) -> None:
    """Counted second by second."""
    seconds = {at for began, end in found for at in range(began, end)}
    assert covered(found) == len(seconds)
