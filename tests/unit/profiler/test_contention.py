"""What others leave to our threads."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.contention import share

CPUS = st.floats(0.1, 512)
RUNNABLE = st.floats(0, 5000)
THREADS = st.integers(1, 512)


@pytest.mark.parametrize(
    ("cpus", "runnable", "threads", "expected"),
    [
        (2, 0, 2, 1.0),  # nobody else
        (8, 3, 4, 1.0),  # others fit beside us
        (
            8,
            6,
            4,
            pytest.approx(4 / 7),
        ),  # each beside 6 / 8 of another, which is more than the 2 idle CPUs give
        (2, 1.96, 1, pytest.approx(2 / 3.96)),  # used to 98 %: a turn, and not the idle 2 %
        (2, 2, 1, 0.5),  # a busy thread on each CPU: ours shares one of them
        (2, 0.5, 1, 1.0),  # a whole CPU is idle
        (2, 1, 2, pytest.approx(2 / 3)),  # three threads on two CPUs
        (1, 9, 1, 0.1),  # a tenth of the only CPU
        (1, 0, 4, 0.25),  # more threads than CPUs: our own fault, and no faster for it
    ],
)
def test_the_scheduler_shares_fairly(cpus: float, runnable: float, threads: int, expected: float) -> None:
    """Worked by hand from the formula's meaning."""
    assert share(cpus, runnable, threads) == expected


@given(CPUS, RUNNABLE, THREADS, st.floats(0, 100))
def test_more_of_others_never_leaves_more(cpus: float, runnable: float, threads: int, further: float) -> None:
    """Above 0, at most 1, and falling: nobody's thread waits for ever, and nobody's makes ours faster."""
    some, less = share(cpus, runnable, threads), share(cpus, runnable + further, threads)
    assert 0 < less <= some <= 1


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("machine_cpus", (0, 1, 1)),
        ("machine_cpus", (math.nan, 1, 1)),
        ("machine_cpus", (math.inf, 1, 1)),
        ("runnable", (1, -0.1, 1)),
        ("runnable", (1, math.nan, 1)),
        ("threads", (1, 1, 0)),
    ],
)
def test_numbers_that_no_machine_has_are_refused(field: str, arguments: tuple[float, float, int]) -> None:
    """By name; no share is made up from them."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        share(*arguments)
