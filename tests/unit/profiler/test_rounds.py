"""Budgets per hour, and which probes are due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.budget import HOUR, Budget, budget
from splitinfer.profiler.rounds import due, refusal
from splitinfer.profiler.targets import ProbeTarget

A, B, C = (ProbeTarget(model=name) for name in "abc")


@given(
    per_hour=st.floats(1, 1000),
    cost=st.floats(0.01, 5),
    gaps=st.lists(st.floats(0, 600), min_size=1, max_size=200),
)
def test_no_hour_sees_more_than_the_budget(per_hour: float, cost: float, gaps: list[float]) -> None:
    """Wherever the hour begins; but for the last expense, where that is more than a tenth of the budget."""
    now, bucket = 100.0, budget(per_hour, 100.0)
    spent: list[tuple[float, float]] = []
    for gap in gaps:
        now += gap
        bucket = bucket.until(now)
        if bucket.allows(cost):
            bucket = bucket.spent(cost)
            spent.append((now, cost))
    beyond = max(0.0, cost - per_hour / 10)
    for begin, _ in spent:
        hour = sum(amount for at, amount in spent if begin <= at < begin + HOUR)
        assert hour <= per_hour + beyond + 1e-6


def test_a_budget_is_spent_in_an_hour_and_not_saved_up() -> None:
    """Nine tenths come back in an hour; what was not used in a day is not there at once."""
    bucket = budget(60.0, 0.0).spent(6.0)
    assert bucket.left == 0.0
    assert not bucket.allows(0.5)
    assert bucket.until(HOUR / 54).left == pytest.approx(1.0)
    assert bucket.until(24 * HOUR).left == pytest.approx(6.0)


def test_an_expense_larger_than_thought_is_paid_off() -> None:
    """Until then nothing begins."""
    bucket = budget(60.0, 0.0).spent(10.0)
    assert not bucket.until(200.0).allows(0.1)
    assert bucket.until(400.0).allows(1.0)


def test_a_budget_of_nothing_allows_nothing() -> None:
    """And a clock that stands or goes back fills nothing."""
    assert not budget(0.0, 0.0).until(1e9).allows(0.0)
    assert Budget(60.0, 1.0, 50.0).until(40.0) == Budget(60.0, 1.0, 50.0)


def test_probes_take_turns() -> None:
    """What was never tried comes first, then what was tried longest ago; nothing before its interval is over."""
    tried = {A: 100.0, B: 70.0}
    assert due((A, B, C), tried, 131.0, 60.0, (2.0, 2.0)) == (C, B)
    assert due((A, B, C), tried, 160.0, 60.0, (2.0, 2.0)) == (C, B, A)
    assert due((A, B), tried, 129.0, 60.0, (2.0, 2.0)) == ()


@pytest.mark.parametrize(
    ("before", "now", "all_due"),
    [(2.0, 0.5, True), (0.5, 2.0, True), (2.0, 1.98, False), (None, 2.0, False)],
)
def test_a_change_of_the_usable_cpus_makes_all_due(before: float | None, now: float, all_due: bool) -> None:
    """A node that is throttled shows it in the next round, and one that is freed too."""
    assert due((A, B), {A: 100.0, B: 101.0}, 102.0, 60.0, (before, now)) == ((A, B) if all_due else ())


def test_no_probe_begins_on_a_node_that_serves() -> None:
    """Nor where it is not known whether it does; then for the budget."""
    full, empty = budget(60.0, 0.0), budget(60.0, 0.0).spent(6.0)
    assert refusal(full, 1.0, 0.0, 0.05) is None
    assert refusal(full, 1.0, 0.05, 0.05) is None
    assert refusal(full, 1.0, 0.051, 0.05) == "serving"
    assert refusal(full, 1.0, None, 0.05) == "serving"
    assert refusal(empty, 1.0, 0.0, 0.05) == "over_budget"
