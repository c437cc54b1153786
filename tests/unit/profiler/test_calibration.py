"""What the probe predicts of live steps, and how the ratio of observed to predicted is learned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.optimizer.cost import NodeSpeeds, decode_seconds, prefill_seconds
from splitinfer.optimizer.example import tiny_question
from splitinfer.profiler.calibration import (
    BOUND,
    FORGET_SECONDS,
    LEAST_STEPS,
    LEAST_WINDOWS,
    WINDOWS,
    Calibration,
    predicted_seconds,
    window_ratio,
)
from splitinfer.profiler.speeds import Speeds
from splitinfer.profiler.steps import Phase, StepTotals

PHASES: tuple[Phase, ...] = ("decode", "prefill")


@dataclass(frozen=True)
class Block:
    """A probed block; powers of two, so that sums are exact."""

    weight_bytes: int = 1 << 20
    kv_bytes_per_token: int = 1 << 8
    frame_seconds: float = 2.0**-12
    quota_cpus: float | None = None
    prefill_flops_per_token: float = 2.0**22
    decode_flops_per_token: float = 2.0**21


BLOCK = Block()
SPEEDS = Speeds(
    memory_bandwidth_bytes_per_second=2.0**33,
    flops_per_second=2.0**35,
    block_overhead_seconds=2.0**-14,
    step_overhead_seconds=2.0**-10,
    serialisation_bytes_per_second=2.0**30,
)


def totals(steps: int, blocks: int, rows: int, context: int, seconds: float = 1.0) -> StepTotals:
    """Of steps that are alike, in a range of so many blocks."""
    return StepTotals(steps, seconds, steps * blocks, steps * blocks * rows, steps * blocks * context)


def test_decode_is_the_bytes_and_the_overheads() -> None:
    """By hand: 4 steps of 8 blocks, one row, 512 tokens of context. No frame in it."""
    step = 2.0**-10 - 2.0**-12
    block = 2.0**-14 + (2**20 + 512 * 2**8) / 2.0**33
    assert predicted_seconds(totals(4, 8, 1, 512), "decode", SPEEDS, BLOCK) == 4 * (step + 8 * block)


def test_prefill_is_the_arithmetic_and_the_overheads() -> None:
    """By hand: one step of 8 blocks, 128 rows; the phase chooses the FLOPs of a token."""
    found = {phase: predicted_seconds(totals(1, 8, 128, 128), phase, SPEEDS, BLOCK) for phase in PHASES}
    fixed = 2.0**-10 - 2.0**-12 + 8 * 2.0**-14
    assert found == {"prefill": fixed + 8 * 128 * 2.0**-13, "decode": fixed + 8 * 128 * 2.0**-14}


@given(rows=st.integers(1, 64), prompt=st.integers(1, 4000), chunk=st.integers(64, 512))
def test_it_is_the_cost_model_that_plans_are_made_with(rows: int, prompt: int, chunk: int) -> None:
    """A block by `splitinfer.optimizer.cost` and one by the totals of its steps: the same seconds, in both phases."""
    question = tiny_question()
    work = question.workload.model_copy(update={"concurrency": rows, "prompt_tokens": prompt})
    unit = question.graph.blocks[0]
    block = Block(
        weight_bytes=question.graph.bytes_of(unit),
        kv_bytes_per_token=unit.kv_bytes_per_token,
        prefill_flops_per_token=unit.prefill_flops_per_token,
        decode_flops_per_token=unit.decode_flops_per_token,
    )
    node = NodeSpeeds(
        bandwidth=np.array([SPEEDS.memory_bandwidth_bytes_per_second]),
        flops=np.array([SPEEDS.flops_per_second]),
        block_overhead=np.array([SPEEDS.block_overhead_seconds]),
        step_overhead=np.array([SPEEDS.step_overhead_seconds]),
        serialise=np.array([SPEEDS.serialisation_bytes_per_second]),
        free=np.ones(1),
    )
    step = SPEEDS.step_overhead_seconds - BLOCK.frame_seconds
    one = totals(1, 1, rows, 0)
    decode = replace(one, block_context_tokens=rows * work.typical_context_tokens)
    expected = float(decode_seconds(question.graph, [unit], node, work)[0, 0])
    assert predicted_seconds(decode, "decode", SPEEDS, block) - step == pytest.approx(expected)
    prefill = totals(1, 1, chunk, 0)  # the cost model has no KV in prefill: it never is the larger term
    expected = float(prefill_seconds(question.graph, [unit], node, [float(chunk)])[0, 0])
    assert predicted_seconds(prefill, "prefill", SPEEDS, block) - step == pytest.approx(expected)


some = st.builds(totals, st.integers(1, 100), st.integers(1, 32), st.integers(1, 512), st.integers(1, 4096))


@given(one=some, other=some, phase=st.sampled_from(PHASES))
def test_steps_predicted_together_take_at_most_what_they_take_apart(
    one: StepTotals, other: StepTotals, phase: Phase
) -> None:
    """The larger of two sums: between the larger of the parts and their sum."""
    names = ("steps", "seconds", "blocks", "block_rows", "block_context_tokens")
    both = StepTotals(*(getattr(one, name) + getattr(other, name) for name in names))
    a, b, together = (predicted_seconds(t, phase, SPEEDS, BLOCK) for t in (one, other, both))
    assert max(a, b) <= together <= (a + b) * (1 + 1e-12)


@given(steps=some, phase=st.sampled_from(PHASES), wrong=st.floats(0.1, 10), share=st.floats(0.05, 1))
def test_a_window_says_how_wrong_the_probe_is_whatever_others_take(
    steps: StepTotals, phase: Phase, wrong: float, share: float
) -> None:
    """Steps ``wrong`` times as long as predicted, and stretched by contention: the ratio is ``wrong`` alone."""
    predicted = predicted_seconds(steps, phase, SPEEDS, BLOCK)
    observed = replace(steps, seconds=wrong * predicted / share)
    found = window_ratio({phase: observed}, share, SPEEDS, BLOCK)
    assert found == (pytest.approx(wrong) if steps.steps >= LEAST_STEPS else None)


def test_a_phase_with_too_few_steps_is_left_out_of_a_window() -> None:
    """It could be one that was disturbed; the other phase still counts."""
    many, few = totals(LEAST_STEPS, 4, 1, 100), totals(LEAST_STEPS - 1, 4, 64, 64, seconds=1000.0)
    both = window_ratio({"decode": many, "prefill": few}, 1.0, SPEEDS, BLOCK)
    assert both == window_ratio({"decode": many}, 1.0, SPEEDS, BLOCK)
    assert window_ratio({"prefill": few}, 1.0, SPEEDS, BLOCK) is None


@pytest.mark.parametrize("share", [None, 0.0, -0.5, 1.5, float("nan")])
def test_without_a_share_nothing_can_be_told(share: float | None) -> None:
    """What others took is unknown: the time may be theirs."""
    assert window_ratio({"decode": totals(100, 4, 1, 100)}, share, SPEEDS, BLOCK) is None


@pytest.mark.parametrize("seconds", [0.0, float("nan"), float("inf")])
def test_no_time_is_no_ratio(seconds: float) -> None:
    """A counter that makes no sense."""
    assert window_ratio({"decode": totals(100, 4, 1, 100, seconds)}, 1.0, SPEEDS, BLOCK) is None


def learned(ratios: list[float], every: float = 1.0) -> Calibration:
    """After so many windows, the last at time 0."""
    found = Calibration()
    for index, ratio in enumerate(ratios):
        found = found.after(ratio, (index + 1 - len(ratios)) * every)
    return found


good = st.floats(0.8, 1.3)
bad = st.floats(1e-6, 1e6)


@given(data=st.data())
def test_less_than_half_of_the_windows_cannot_move_it_out_of_the_range_of_the_others(
    data: st.DataObject,
) -> None:
    """Robust: however far off they are, and wherever they stand."""
    size = data.draw(st.integers(LEAST_WINDOWS, WINDOWS))
    wrong = data.draw(st.lists(bad, max_size=(size - 1) // 2))
    right = data.draw(st.lists(good, min_size=size - len(wrong), max_size=size - len(wrong)))
    found = learned(data.draw(st.permutations(right + wrong))).ratio(0.0)
    assert found is not None
    assert min(right) <= found <= max(right)


@given(ratios=st.lists(bad, min_size=LEAST_WINDOWS, max_size=20))
def test_it_is_bounded(ratios: list[float]) -> None:
    """Beyond the bound a probe is repeated, not corrected."""
    found = learned(ratios).ratio(0.0)
    assert found is not None
    assert 1 / BOUND <= found <= BOUND


@given(before=st.lists(bad, max_size=30), now=good)
def test_it_forgets_what_was_before_the_last_windows(before: list[float], now: float) -> None:
    """By number: after `WINDOWS` windows nothing is left of what was before."""
    assert learned(before + [now] * WINDOWS).ratio(0.0) == now


def test_it_is_unknown_before_enough_windows_and_when_they_are_too_old() -> None:
    """One disturbed window makes no ratio; nor do windows that nothing has confirmed for long."""
    assert learned([1.1] * (LEAST_WINDOWS - 1)).ratio(0.0) is None
    found = learned([1.1] * LEAST_WINDOWS)
    assert found.ratio(0.0) == 1.1
    oldest = found.samples[0].at
    assert found.ratio(oldest + FORGET_SECONDS) == 1.1
    assert found.ratio(oldest + FORGET_SECONDS + 0.001) is None


def test_its_age_is_that_of_the_newest_window() -> None:
    """None before any; a window that told nothing makes it no younger."""
    assert Calibration().age_seconds(5.0) is None
    found = learned([1.0, 1.0]).after(None, 3.0).after(float("nan"), 4.0).after(-1.0, 4.5)
    assert found.age_seconds(5.0) == 5.0
    assert found == learned([1.0, 1.0])
