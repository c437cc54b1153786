"""What others do on the CPUs: a simulated scheduler knows the truth, the window sees its counters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.profiler.window import LOWEST_WEIGHT, Counters, CpuTime, Load, Window, load_of

HZ = 100


def watched(
    cpus: int, busy: float, niced: float, runnable: float, seconds: float = 1000.0, own: float = 0.0
) -> Window:
    """A window over which so many CPUs were busy, and so many threads runnable, on average."""
    jiffies = seconds * HZ
    before = Counters(5.0, CpuTime(7, 7, 7), 1.0)
    idle = cpus - busy - niced
    after = Counters(
        5.0 + seconds,
        CpuTime(7 + round(busy * jiffies), 7 + round(niced * jiffies), 7 + round(idle * jiffies)),
        1.0 + own * seconds,
    )
    # Threads are whole: the samples' average is what counts.
    window = Window(before)
    whole = math.floor(runnable)
    for index in range(1000):
        window = window.sampled(whole + (index < round(1000 * (runnable - whole))))
    return window.held(after)


def scheduled(cpus: int, normal: int, niced: int) -> tuple[float, float]:
    """CPUs that always-runnable threads of ordinary and of the lowest priority get from a fair scheduler."""
    weights = [1.0] * normal + [LOWEST_WEIGHT] * niced
    left, got, waiting = float(cpus), [0.0] * len(weights), list(range(len(weights)))
    while waiting and left > 1e-9:
        total = sum(weights[i] for i in waiting)
        full = [i for i in waiting if got[i] + left * weights[i] / total >= 1.0]
        if not full:
            for i in waiting:
                got[i] += left * weights[i] / total
            break
        for i in full:
            left -= 1.0 - got[i]
            got[i] = 1.0
        waiting = [i for i in waiting if got[i] < 1.0]
    return sum(got[:normal]), sum(got[normal:])


@pytest.mark.parametrize("cpus", [1, 2, 8])
@pytest.mark.parametrize("normal", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("niced", [0, 1, 6, 30])
def test_threads_of_ordinary_priority_are_told_from_those_that_give_way(
    cpus: int, normal: int, niced: int
) -> None:
    """However many there are of each, and whether or not the CPUs suffice for them."""
    busy, low = scheduled(cpus, normal, niced)
    found = load_of(watched(cpus, busy, low, normal + niced), cpus, 0.0)
    assert found is not None
    assert found.busy_ratio == pytest.approx(busy / cpus, abs=1e-3)
    assert found.runnable == pytest.approx(normal, rel=0.02, abs=0.02)


@pytest.mark.parametrize(("others", "ours"), [(0, 2), (1, 2), (3, 1), (5, 8)])
def test_the_threads_of_hosts_are_no_load_of_others(others: int, ours: int) -> None:
    """On CPUs that are short, threads are told apart by the CPU time they got: a thread waits as others do."""
    cpus = 2
    busy, _ = scheduled(cpus, others + ours, 0)
    serving = busy * ours / (others + ours)
    found = load_of(watched(cpus, busy, 0.0, others + ours), cpus, serving)
    assert found is not None
    assert found.runnable == pytest.approx(others, rel=0.01, abs=0.01)
    assert found.busy_ratio == pytest.approx((busy - serving) / cpus, abs=1e-3)


def test_the_agent_is_no_load_of_others() -> None:
    """Its own CPU time is taken off."""
    found = load_of(watched(2, 0.5, 0.0, 0.3, own=0.2), 2, 0.0)
    assert found is not None
    assert found.busy_ratio == pytest.approx(0.15)
    assert found.runnable == pytest.approx(0.3)


def test_hosts_that_use_more_than_the_machine_are_not_on_it() -> None:
    """What contradicts is unknown: an address of another machine among the targets makes no idle node of a busy one."""
    assert load_of(watched(2, 0.5, 0.0, 1), 2, 1.5) is None
    assert load_of(watched(2, 0.5, 0.0, 1), 2, 0.55) is not None  # ticks are coarse


def test_a_probe_of_ours_is_not_in_the_window() -> None:
    """While it stands still neither CPU time nor threads count, nor the time."""
    window = Window(Counters(0.0, CpuTime(0, 0, 0), 0.0)).sampled(1)
    window = window.held(Counters(1.0, CpuTime(50, 0, 150), 0.0))
    window = window.sampled(9)
    window = window.resumed(Counters(4.0, CpuTime(650, 0, 150), 0.0)).sampled(1)
    window = window.held(Counters(5.0, CpuTime(700, 0, 300), 0.0))
    assert window.seconds == 2.0
    assert load_of(window, 2, 0.0) == Load(0.25, 1.0)


@pytest.mark.parametrize(
    "window",
    [
        Window(None),
        Window(Counters(0, None, 0)).held(Counters(1, CpuTime(1, 1, 1), 0)),
        Window(Counters(0, CpuTime(9, 0, 0), 0)).held(Counters(1, CpuTime(8, 0, 9), 0)),
        Window(Counters(0, CpuTime(9, 9, 9), 0)).held(Counters(1, CpuTime(9, 9, 9), 0)),
    ],
)
def test_what_the_kernel_does_not_say_is_unknown(window: Window) -> None:
    """No window, no counters, counters that went back or stood."""
    assert load_of(window, 2, 0.0) is None
    assert load_of(watched(2, 1, 0, 1), None, 0.0) is None
    assert load_of(watched(2, 1, 0, 1), 2, None) is None


def test_threads_that_one_reading_missed_are_unknown() -> None:
    """The share of the CPUs is known all the same."""
    open_window = Window(Counters(0.0, CpuTime(0, 0, 0), 0.0))
    end = Counters(1.0, CpuTime(100, 0, 100), 0.0)
    assert load_of(open_window.sampled(3).sampled(None).held(end), 2, 0.0) == Load(0.5, None)
    assert load_of(open_window.held(end), 2, 0.0) == Load(0.5, None)


@given(
    busy=st.floats(0, 4),
    niced=st.floats(0, 4),
    runnable=st.floats(0, 100),
    serving=st.floats(0, 4),
)
def test_no_reading_is_impossible(busy: float, niced: float, runnable: float, serving: float) -> None:
    """A share is a share, and no fewer threads want to run than CPUs they keep busy."""
    scale = min(1.0, 4 / (busy + niced)) if busy + niced else 1.0
    found = load_of(watched(4, busy * scale, niced * scale, runnable), 4, serving)
    if found is not None:
        assert 0 <= found.busy_ratio <= 1
        assert found.runnable is not None
        assert found.runnable >= found.busy_ratio * 4 - 1e-6
