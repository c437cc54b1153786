"""What serving processes say: real expositions, and everything that is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest

from splitinfer.profiler.series import HOST_SERIES, PHASES
from splitinfer.profiler.serving import Served, ServingError, activity, parse_served
from splitinfer.profiler.steps import StepTotals

URL = "http://127.0.0.1:1/metrics"


def host_text(decode: float, prefill: float, cpu: float = 3.0, started: float = 9.0) -> str:
    """The counters of a host, each with these values per phase."""
    registry = CollectorRegistry()
    for series in HOST_SERIES:
        counter = Counter(series.name, series.help, ["phase"], registry=registry)
        for phase, value in zip(PHASES, (decode, prefill), strict=True):
            counter.labels(phase).inc(value)
    lines = f"process_cpu_seconds_total {cpu}\nprocess_start_time_seconds {started}\n"
    return generate_latest(registry).decode() + lines


def served(at: float, cpu: float, decode: float | None, started: float | None = 9.0) -> Served:
    """A process; None: no host."""
    if decode is None:
        return Served(at, started, cpu, None)
    totals = StepTotals(decode, decode, decode, decode, decode)
    return Served(at, started, cpu, {"decode": totals, "prefill": StepTotals(0, 0, 0, 0, 0)})


def test_a_host_says_its_steps_and_its_cpu_time() -> None:
    """As prometheus_client writes them."""
    found = parse_served(host_text(2.0, 5.0), 7.0)
    assert (found.at, found.cpu_seconds, found.started) == (7.0, 3.0, 9.0)
    assert found.steps == {"decode": StepTotals(2, 2, 2, 2, 2), "prefill": StepTotals(5, 5, 5, 5, 5)}


def test_a_process_that_is_no_host_says_its_cpu_time() -> None:
    """The entry serves too, and computes no steps of its own."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    found = parse_served(generate_latest(registry).decode(), 7.0)
    assert found.cpu_seconds > 0
    assert found.steps is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no process_cpu_seconds_total"),
        ("<html>nothing</html>", "not the text format"),
        ("process_cpu_seconds_total NaN\n", "NaN|nan"),
        ("process_cpu_seconds_total -1\n", "is no sum"),
        ("process_cpu_seconds_total 1\nprocess_cpu_seconds_total 2\n", "there twice"),
        ("process_cpu_seconds_total 1\nsplitinfer_host_epoch 1\n", "no splitinfer_host_steps_total"),
        (host_text(1, 1).replace('steps_total{phase="decode"}', 'steps_total{phase="x"}'), "no splitinfer_host_"),
        (host_text(1, 1) + 'splitinfer_host_steps_total{phase="decode"} 1\n', "there twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error(text: str, said: str) -> None:
    """Half of the counters are none: no number is made of the rest."""
    with pytest.raises(ServingError, match=said):
        parse_served(text, 0.0)


@given(st.text(max_size=200), st.integers(0, 2000))
def test_no_text_breaks_the_parser(garbage: str, cut: int) -> None:
    """Garbage in the middle of an exposition, or one that ends early: a reading, or a ServingError."""
    text = host_text(1, 2)
    for broken in (garbage, text[:cut], text[:cut] + garbage + text[cut:]):
        try:
            found = parse_served(broken, 0.0)
        except ServingError:
            continue
        assert math.isfinite(found.cpu_seconds)


def test_what_all_did_between_two_rounds() -> None:
    """CPUs and shares of each over its own time, and steps added."""
    before = {"a": served(0, 1, 1), "b": served(1, 1, 2), "e": served(0, 0, None)}
    after = {"a": served(10, 6, 3), "b": served(6, 2, 3), "e": served(10, 1, None)}
    found = activity(before, after, ["a", "b", "e"])
    assert found is not None
    assert found.cpus == pytest.approx(0.5 + 0.2 + 0.1)
    assert found.busy_ratio == pytest.approx(0.2 + 0.2)
    assert found.steps["decode"] == StepTotals(3, 3, 3, 3, 3)


def test_a_node_without_serving_processes_does_nothing() -> None:
    """That is known, and is not the same as one that does not answer."""
    found = activity({}, {}, [])
    assert found is not None
    assert (found.cpus, found.busy_ratio, dict(found.steps)) == (0.0, 0.0, {})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {URL: served(1, 1, 1)}),  # it is new
        ({URL: served(0, 1, 1)}, {}),  # it does not answer
        ({URL: served(0, 5, 5)}, {URL: served(1, 1, 6)}),  # it began anew
        ({URL: served(0, 5, 5)}, {URL: served(1, 6, 1)}),
        (
            {URL: served(0, 0, 0, started=1)},
            {URL: served(1, 6, 7, started=2)},
        ),  # so did this, and did more since
        ({URL: served(0, 5, None)}, {URL: served(1, 6, 1)}),  # another process has its port
        ({URL: served(1, 5, 5)}, {URL: served(1, 6, 6)}),  # no time between
    ],
)
def test_what_cannot_be_compared_is_unknown(before: dict[str, Served], after: dict[str, Served]) -> None:
    """One of them is enough: the sum of the others would be too small."""
    other = {"other": served(0, 1, 1)}
    assert activity(other | before, {"other": served(1, 2, 2)} | after, ["other", URL]) is None
