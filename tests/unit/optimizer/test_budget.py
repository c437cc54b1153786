"""What a budget counts, and what it does not."""

from __future__ import annotations

import pytest

from splitinfer.optimizer import solver
from splitinfer.optimizer.budget import Budget
from splitinfer.optimizer.example import tiny_problem


def test_compiling_is_no_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is first looked at when everything is compiled.

    Else the first plan on a new machine is "none found in the time given", because the time went into compiling.
    """
    events: list[str] = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    monkeypatch.setattr(solver, "warm_up", lambda: events.append("compiled"))
    found = solver.solve(tiny_problem(False), Budget(1.0, clock))
    assert found.runs
    assert events[0] == "compiled"
    assert "clock" in events
